"""Two results of `outzoom bench` beside each other: what got better and what worse, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..runtime.errors import UserError
from .repeat import Repeated, Spread
from .results import BundleResult, Latency, Results
from .settings import BenchSettings

Verdict = Literal["better", "worse", "within noise"]
LEAST_TIME = 0.03  # of a time: less is noise, whatever the ranges say
LEAST_SIZE = 0.01  # of bytes on disk, which have no noise but that of an engine's version
LEAST_MEMORY = 0.05  # of peak memory, which depends on when the allocator gives back
LEAST_ENERGY = 0.05  # of joules: a single zoom's, with whatever else the machine did
LEAST_DB = 0.5


@dataclass(frozen=True)
class Change:
    """A figure of a bundle in both results; `before` and `after` in the unit that its name ends with."""

    bundle: str
    figure: str
    before: float
    after: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """After to before."""
        return self.after / self.before if self.before else float("inf")


def compare(before: Results, after: Results, noise: Repeated | None = None) -> list[Change]:
    """Every figure of the bundles that both have. Raises UserError where there is none, or the settings differ.

    Times differ beyond noise where the ranges from their 10th to their 90th percentile do not meet and the medians
    differ by 3%; peak memory by 5%, bytes on disk by 1%, PSNR by 0.5 dB; a keyframe's energy by 5%, if it was measured
    by the same counter both times. With `noise`, how far runs of one scenario lay apart, a figure of a bundle that it
    has must differ by more than it did there.
    """
    if (
        _measured_with(before.settings) != _measured_with(after.settings)
        or before.picture_sha256 != after.picture_sha256
    ):
        raise UserError(
            "the two results were measured with other settings or another picture",
            hint="run outzoom bench with the same options both times",
        )
    old = {bundle.name: bundle for bundle in before.bundles}
    pairs = [(old[bundle.name], bundle) for bundle in after.bundles if bundle.name in old]
    if not pairs:
        names = [", ".join(bundle.name for bundle in one.bundles) or "none" for one in (before, after)]
        raise UserError(
            f"the two results have no bundle in common: {names[0]} before, {names[1]} after",
            hint="compare results of the same bundles",
        )
    spreads = noise.bundles if noise else {}
    changes = [change for one, other in pairs for change in _changes(one, other)]
    return [_beyond(change, spreads.get(change.bundle, {}).get(change.figure)) for change in changes]


def _beyond(change: Change, spread: Spread | None) -> Change:
    """The change, as noise if runs that should be equal lay as far apart."""
    if spread is None or max(change.ratio, 1 / change.ratio) > 1 + spread.spread:
        return change
    return replace(change, verdict="within noise")


def _measured_with(settings: BenchSettings) -> BenchSettings:
    """The settings without those that say what else to tell, and change no figure that is compared."""
    return replace(settings, power_model=None, battery_wh=None, clip=None)


def machines_differ(before: Results, after: Results) -> bool:
    """Whether times can't be compared, since they are of different processors."""
    one, other = before.machine, after.machine
    return (one.cpu_model, one.usable_cores) != (other.cpu_model, other.usable_cores)


def _changes(before: BundleResult, after: BundleResult) -> Iterator[Change]:
    name = after.name
    yield _of_times(name, "keyframe_ms", before.zoom.keyframe, after.zoom.keyframe)
    yield _of_times(name, "between_frame_ms", before.zoom.between_frame, after.zoom.between_frame)
    for component, found in after.components.items():
        if component in before.components:
            yield _of_times(name, f"{component}_ms", before.components[component].latency, found.latency)
    peaks = (before.memory.peak_rss_bytes, after.memory.peak_rss_bytes)
    yield _of_numbers(name, "peak_rss_bytes", *peaks, LEAST_MEMORY)
    yield _of_numbers(name, "size_bytes", before.size_bytes, after.size_bytes, LEAST_SIZE)
    one, other = before.energy, after.energy
    if one and other and one.is_measured and one.method == other.method:
        yield _of_numbers(name, "keyframe_joules", one.keyframe_joules, other.keyframe_joules, LEAST_ENERGY)
    if before.quality and after.quality:
        psnr_db = before.quality[0].border_psnr_db, after.quality[0].border_psnr_db
        if psnr_db[0] is not None and psnr_db[1] is not None:
            yield _of_decibels(name, "border_psnr_db", psnr_db[0], psnr_db[1])


def _of_times(bundle: str, figure: str, before: Latency, after: Latency) -> Change:
    found = _of_numbers(bundle, figure, before.median_ms, after.median_ms, LEAST_TIME)
    return found if not before.overlaps(after) else Change(bundle, figure, found.before, found.after, "within noise")


def _of_numbers(bundle: str, figure: str, before: float, after: float, least: float) -> Change:
    """Lower is better."""
    if abs(after - before) <= least * before:
        return Change(bundle, figure, before, after, "within noise")
    return Change(bundle, figure, before, after, "better" if after < before else "worse")


def _of_decibels(bundle: str, figure: str, before: float, after: float) -> Change:
    """Higher is better."""
    if abs(after - before) <= LEAST_DB:
        return Change(bundle, figure, before, after, "within noise")
    return Change(bundle, figure, before, after, "better" if after > before else "worse")
