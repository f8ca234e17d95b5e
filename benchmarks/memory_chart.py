"""Memory over time: what a bundle's process holds while it opens, runs its engines alone, and zooms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .plots import LINE, TEXT, WIDTH_INCHES, draw_chart, label_axes
from .report_parts import Chart, Colours, mb
from .results import BundleResult, MemoryResult

HEIGHT_INCHES = 1.6
OPEN, ALONE, ZOOM = "open", "engines alone", "zoom"


def memory_charts(bundles: Sequence[BundleResult], colours: Colours) -> list[Chart]:
    """A chart for each bundle whose memory was sampled."""
    return [_chart(bundle, colours[bundle.name]) for bundle in bundles if bundle.memory.trace]


def phases(memory: MemoryResult) -> list[tuple[str, float, float]]:
    """The parts of a measurement, from and to how many seconds: opening, running engines alone, the zoom."""
    named = [(_phase(stage.name), stage.from_seconds) for stage in memory.stages]
    starts = [(name, next(times)[1]) for name, times in groupby(named, key=lambda one: one[0])]
    ends = [start for _, start in starts[1:]] + [memory.trace[-1].seconds]
    return [(name, start, end) for (name, start), end in zip(starts, ends, strict=True)]


def _phase(stage: str) -> str:
    if stage.startswith("keyframe "):
        return ZOOM
    return ALONE if stage.endswith(" runs") else stage


def _chart(bundle: BundleResult, colour: str) -> Chart:
    trace = bundle.memory.trace

    def draw(axes: Any) -> None:
        axes.fill_between([one.seconds for one in trace], [one.rss_bytes / 1e6 for one in trace], color=colour, lw=0)
        for name, start, _ in phases(bundle.memory):
            axes.axvline(start, color=LINE, linewidth=0.8)
            axes.annotate(name, (start, 1), (2, -1), xycoords=("data", "axes fraction"), textcoords="offset points",
                          va="bottom", fontsize=7, color=TEXT)  # fmt: skip
        axes.set_ylim(0)
        axes.margins(x=0.01)
        label_axes(axes, "s", "MB")

    most = {
        name: max((one.rss_bytes for one in trace if start <= one.seconds <= end), default=0)
        for name, start, end in phases(bundle.memory)
    }
    words = "; ".join(f"{name}: {mb(most_bytes)} MB at most" for name, most_bytes in most.items())
    title = f"Memory of {bundle.name}"
    return Chart(bundle.name, draw_chart(draw, title, HEIGHT_INCHES, WIDTH_INCHES), f"{title}. {words}")
