"""Bar charts as SVG to put inside a page: they take its text colour and its width, and refer to nothing outside."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..runtime.errors import printable

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH_INCHES = 4.9
ROW_INCHES = 0.31
LABEL_CHARACTERS = 24
FONT_SIZE = 9
# Okabe and Ito's palette, told apart by colour-blind people; 3:1 or more against white and near-black.
COLOURS = ("#0072B2", "#D55E00", "#00916A", "#B8629A", "#8577E6", "#A87900", "#4C8C9B", "#7F7F7F")
TEXT, LINE = "#010203", "#040506"  # stand-ins, replaced by the page's own


@dataclass(frozen=True)
class Bar:
    """A bar from zero to `value` with `text` at its end, and a whisker from `low` to `high` if given."""

    label: str
    value: float
    text: str
    colour: str
    low: float | None = None
    high: float | None = None


def bar_chart(bars: Sequence[Bar], name: str) -> Markup:
    """Horizontal bars, the first on top, as an inline <svg>; `name` must be unique in the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": FONT_SIZE}):
        figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(bars) + 0.1), layout="constrained")
        axes = figure.add_subplot()
        for row, bar in enumerate(bars):
            axes.barh(row, bar.value, height=0.62, color=bar.colour)
            end = bar.value
            if bar.low is not None and bar.high is not None:
                whisker = [[max(bar.value - bar.low, 0)], [max(bar.high - bar.value, 0)]]
                axes.errorbar(bar.value, row, xerr=whisker, color=TEXT, elinewidth=1, capsize=2.5)
                end = max(end, bar.high)
            axes.annotate(
                bar.text, (end, row), (5, 0), textcoords="offset points", va="center", color=TEXT, parse_math=False
            )
        most = max((max(bar.value, bar.high or 0) for bar in bars), default=0)
        axes.set_xlim(0, (most or 1) * 1.35)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), [_short(bar.label) for bar in bars])
        for tick in axes.get_yticklabels():
            tick.set(parse_math=False, color=TEXT)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(LINE)
        return inline(figure)


def inline(figure: Any) -> Markup:
    """A matplotlib figure as an inline <svg>; TEXT and LINE in it become the page's own colours.

    Draw it in a context with `svg.fonttype` none and a `svg.hashsalt` that is unique in the page.
    """
    from markupsafe import Markup

    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks; the browser has its own
        figure.savefig(buffer, format="svg", transparent=True)
    return Markup(_inlined(buffer.getvalue()))


def _short(label: str) -> str:
    label = printable(label)
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"


def _inlined(svg: str) -> str:
    """Without what belongs to a file of its own: prologue, metadata, sizes, a style for `*`, repeated ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0] if box else ""} aria-hidden="true">', svg, count=1)
    return svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)")
