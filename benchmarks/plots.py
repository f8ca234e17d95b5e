"""Charts as SVG to put inside a page: they take its text colour and its width, and refer to nothing outside."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Spot:
    """A point of a scatter chart; those with `is_best` are joined by a line, and named."""

    label: str
    x: float
    y: float
    colour: str
    is_best: bool = False


def bar_chart(bars: Sequence[Bar], name: str) -> Markup:
    """Horizontal bars, the first on top, as an inline <svg>; `name` must be unique in the page."""

    def draw(axes: Any) -> None:
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

    return draw_chart(draw, name, ROW_INCHES * len(bars) + 0.1, WIDTH_INCHES)


def scatter_chart(spots: Sequence[Spot], across: str, up: str, name: str) -> Markup:
    """Points over two axes of that text as an inline <svg>; `name` must be unique in the page."""

    def draw(axes: Any) -> None:
        best = sorted((spot for spot in spots if spot.is_best), key=lambda spot: spot.x)
        axes.plot([spot.x for spot in best], [spot.y for spot in best], color=LINE, linewidth=1.5, zorder=1)
        for spot in spots:
            edge = {"markeredgecolor": TEXT} if spot.is_best else {"markeredgewidth": 0}
            axes.plot(spot.x, spot.y, "o", color=spot.colour, markersize=6, **edge)
        middle = sum(axes.get_xlim()) / 2
        for spot in best:
            left = spot.x > middle
            axes.annotate(_short(spot.label), (spot.x, spot.y), (-6 if left else 6, 5), textcoords="offset points",
                          ha="right" if left else "left", fontsize=7.5, color=TEXT, parse_math=False)  # fmt: skip
        axes.margins(0.12, 0.15)
        label_axes(axes, across, up)

    return draw_chart(draw, name, 3.3, WIDTH_INCHES)


def label_axes(axes: Any, across: str, up: str) -> None:
    """Texts and lines in the page's colours, and two sides of the frame only."""
    axes.set_xlabel(across, color=TEXT)
    axes.set_ylabel(up, color=TEXT)
    axes.tick_params(colors=TEXT, which="both", labelsize=7.5)
    for side in axes.spines.values():
        side.set_color(LINE)
    axes.spines[["top", "right"]].set_visible(False)


def draw_chart(draw: Callable[[Any], None], name: str, height_inches: float, width_inches: float) -> Markup:
    """What a function draws on axes, as an inline <svg>; `name` must be unique in the page."""
    return draw_figure(lambda figure: draw(figure.add_subplot()), name, height_inches, width_inches)


def draw_figure(draw: Callable[[Any], None], name: str, height_inches: float, width_inches: float) -> Markup:
    """What a function draws on an empty figure, as an inline <svg>; `name` must be unique in the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": FONT_SIZE}):
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        draw(figure)
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
