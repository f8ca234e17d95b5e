"""What the report shows of a keyframe of ours beside other pipelines'."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .keyframe_result import KeyframeResult, SideResult
from .plots import Bar, bar_chart
from .report_parts import digits

if TYPE_CHECKING:
    from markupsafe import Markup

OURS, THEIRS = "#0072B2", "#7F7F7F"


class Row(NamedTuple):
    """A side as a table has it; `versions` of its packages, empty for ours."""

    name: str
    seconds: str
    ratio: str
    peak_rss_bytes: int
    load_seconds: float
    versions: str


class Beside(NamedTuple):
    """What the report shows."""

    chart: Markup
    alt: str
    rows: list[Row]


def beside(result: KeyframeResult) -> Beside:
    """The chart and the table, the quickest first."""
    sides = sorted(result.sides.items(), key=lambda pair: float(np.median(pair[1].keyframe_seconds)))
    bars = [_bar(name, side) for name, side in sides]
    alt = "Time per keyframe. " + "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
    return Beside(bar_chart(bars, "beside"), alt, [_row(name, side, result.reference) for name, side in sides])


def _bar(name: str, side: SideResult) -> Bar:
    median = float(np.median(side.keyframe_seconds))
    colour = THEIRS if side.packages else OURS
    return Bar(name, median, f"{digits(median)} s", colour, min(side.keyframe_seconds), max(side.keyframe_seconds))


def _row(name: str, side: SideResult, reference: str | None) -> Row:
    seconds = side.keyframe_seconds
    return Row(
        name, f"{digits(float(np.median(seconds)))} ({digits(min(seconds))} to {digits(max(seconds))})",
        "reference" if name == reference else shown_ratio(side.ratio), side.peak_rss_bytes, side.load_seconds,
        ", ".join(f"{package} {number}" for package, number in side.packages.items()),
    )  # fmt: skip


def shown_ratio(ratio: dict[str, float]) -> str:
    """The median, and its 95% confidence interval or, of few rounds, the 10th to the 90th percentile."""
    if not ratio:
        return ""
    if "low" in ratio:
        return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}, 95% interval)"
    return f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f}, p10 to p90)"
