"""What quality costs: each bundle's distance from fp32 against its size, its time and its energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .plots import Spot, scatter_chart
from .report_parts import Chart, Colours, digits, first_border_psnr_db
from .results import BundleResult

ABOVE_ALL_DB = 6.0  # over the nearest of the others, for a picture that is identical
Cost = Callable[[BundleResult], float]


def trade_off_charts(bundles: Sequence[BundleResult], colours: Colours) -> list[Chart]:
    """A chart for each cost that was found: border PSNR of the first keyframe over it, the Pareto front joined.

    A bundle that paints the very same picture lies above all others. With fewer than two that are compared there is
    nothing to weigh.
    """
    compared = [bundle for bundle in bundles if bundle.quality]
    if len(compared) < 2:
        return []
    costs: dict[str, tuple[str, Cost]] = {
        "size": ("MB on disk", lambda bundle: bundle.size_bytes / 1e6),
        "time": ("s per keyframe", lambda bundle: bundle.zoom.keyframe.median_ms / 1e3),
        "memory": ("MB at most", lambda bundle: bundle.memory.peak_rss_bytes / 1e6),
    }
    energies = [bundle.energy for bundle in compared if bundle.energy]
    if len(energies) == len(compared):
        how = "" if energies[0].is_measured else ", modelled"
        costs["energy"] = (f"J per keyframe{how}", lambda b: b.energy.keyframe_joules if b.energy else math.nan)
    return [_chart(compared, colours, f"Quality and {name}", *cost) for name, cost in costs.items()]


def on_front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Of points, those that no other one beats: none costs less or as much and has a higher quality or as high.

    Of equal points all are on the front.
    """
    points = list(zip(costs, qualities, strict=True))
    return [
        not any(cost <= c and quality >= q and (cost, quality) != (c, q) for cost, quality in points) for c, q in points
    ]


def _chart(bundles: Sequence[BundleResult], colours: Colours, title: str, across: str, cost: Cost) -> Chart:
    costs, qualities = [cost(bundle) for bundle in bundles], [first_border_psnr_db(bundle) for bundle in bundles]
    top = max((quality for quality in qualities if math.isfinite(quality)), default=0.0) + ABOVE_ALL_DB
    spots = [
        Spot(_label(bundle.name, quality), x, min(quality, top), colours[bundle.name], is_best)
        for bundle, x, quality, is_best in zip(bundles, costs, qualities, on_front(costs, qualities), strict=True)
    ]
    front = sorted((spot for spot in spots if spot.is_best), key=lambda spot: spot.x)
    words = "; ".join(f"{spot.label}: {digits(spot.x)} {across}{_decibels(spot.y, top)}" for spot in front)
    others = [spot.label for spot in spots if not spot.is_best]
    beaten = f". Beaten in both by one of these: {', '.join(others)}" if others else ""
    return Chart(
        title, scatter_chart(spots, across, "border PSNR against fp32, dB", title), f"{title}. {words}{beaten}"
    )


def _label(name: str, quality: float) -> str:
    return name if math.isfinite(quality) else f"{name} (identical)"


def _decibels(quality: float, top: float) -> str:
    return f", {quality:.1f} dB" if quality < top else ""
