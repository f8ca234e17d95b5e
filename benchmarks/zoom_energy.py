"""The energy of a zoom, frame by frame: measured above the machine's idle power, or modelled for a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..runtime import open_manifest
from ..runtime.errors import UserError
from .energy import EnergyMeter, find_sources
from .results import EnergyResult
from .settings import BenchSettings

ON_NVIDIA = ("tensorrt", "tensorrt-rtx")  # targets
READ_AT_FRAMES_SECONDS = 0.01  # a counter as quick as this is read at the ends of frames, too
SETTLE_SECONDS = 1.0  # before the idle power is taken: threads that wait for more work spin for a while
FRAMES_OF_RESOLUTION = 10  # a frame of so many of the counter's own steps is told by itself
LEAST_OF_RESOLUTION = 2  # steps of the counter that a zoom must take


class FrameSpan(NamedTuple):
    """When a frame was made, and whether a keyframe was painted for it."""

    start: float
    end: float
    is_painted: bool


class ZoomMeter:
    """Measures the idle power, and then what each frame takes; a context that the zoom runs in.

    Where nothing can be read it neither waits nor measures, and `result` is None. `warning` says why a measurement
    came to nothing.
    """

    def __init__(self, meter: EnergyMeter, settings: BenchSettings, sleep: Callable[[float], None] = time.sleep):
        self._meter, self._settings, self._sleep = meter, settings, sleep
        self._spans: list[FrameSpan] = []
        self._started = 0.0
        self._idle_watts: float | None = None
        self.warning: str | None = None

    def __enter__(self) -> ZoomMeter:
        """Begin to read, and rest for `idle_seconds` after a while to settle."""
        self._meter.start()
        if self._meter:
            self._sleep(max(SETTLE_SECONDS, self._meter.resolution_seconds))
            start = self._meter.read()
            self._sleep(self._settings.idle_seconds)
            joules, seconds = self._meter.between(start, self._meter.read())
            self._idle_watts = None if joules is None else joules / seconds
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._meter.stop()

    def frame_begins(self) -> None:
        """Call it before a frame is made, outside of its timing."""
        self._started = self._now()

    def frame_ends(self, is_painted: bool) -> None:
        """Call it after a frame, outside of its timing."""
        self._spans.append(FrameSpan(self._started, self._now(), is_painted))

    def _now(self) -> float:
        is_quick = bool(self._meter) and self._meter.resolution_seconds <= READ_AT_FRAMES_SECONDS
        return self._meter.read() if is_quick else self._meter.clock()

    def result(self) -> EnergyResult | None:
        """What the zoom took, when it is over; None, and a `warning`, where that can't be told."""
        if not self._meter:
            return None
        found = self._found()
        if isinstance(found, str):
            self.warning = f"energy was not measured by {self._meter.method}: {found}"
            return None
        return _with_method(found, f"measured: {self._meter.method}", self._settings)

    def _found(self) -> EnergyResult | str:
        """The energy, or why there is none."""
        resolution_seconds = self._meter.resolution_seconds
        seconds, least = sum(span.end - span.start for span in self._spans), LEAST_OF_RESOLUTION * resolution_seconds
        if seconds < least:
            return (
                f"a zoom of {seconds:.3g} s is too short for it, which has something new every {resolution_seconds:g} s"
                f" (make it take {least:g} s or longer, with --seconds or --steps)"
            )
        joules = [self._meter.between(span.start, span.end).joules for span in self._spans]
        known = [each for each in joules if each is not None]
        if self._idle_watts is None or len(known) < len(joules):
            return "it could not be read for part of the time"
        painted = [span.end - span.start for span in self._spans if span.is_painted]
        told_apart = min(painted, default=0.0) >= FRAMES_OF_RESOLUTION * resolution_seconds
        result = energy_of(known, self._spans, self._idle_watts, told_apart)
        if min(result.keyframe_joules, result.frame_joules) <= 0:
            return "the machine took no more while it zoomed than while it was idle"
        return result


def zoom_meter(target: str, settings: BenchSettings) -> ZoomMeter:
    """A meter of what there is to read on this machine, for bundles of a target."""
    return ZoomMeter(EnergyMeter(find_sources(target in ON_NVIDIA)), settings)


def energy_of(joules: list[float], spans: list[FrameSpan], idle_watts: float, told_apart: bool) -> EnergyResult:
    """Of a zoom's frames, from what each took: above idle power but for the mean power.

    Where the counter is too slow for frames to be told apart, all have the zoom's mean power, and only their times
    differ. As with its latency, a keyframe's energy is what its frame took more than a frame between.
    """
    used, painted = np.array(joules), np.array([span.is_painted for span in spans])
    seconds = np.array([span.end - span.start for span in spans])
    mean_watts = float(used.sum() / seconds.sum())
    if not told_apart:
        used = mean_watts * seconds
    above = used - idle_watts * seconds
    between = float(np.median(above[~painted])) if (~painted).any() else 0.0
    keyframe = float(above[painted].mean()) - between if painted.any() else 0.0
    return EnergyResult("", round(idle_watts, 4), keyframe, float(above.mean()), round(mean_watts, 4))


def modelled_energy(bundle: Path, settings: BenchSettings) -> EnergyResult:
    """What `hardware/` predicts of a bundle on the device that `settings.power_model` names, at its first size.

    The device's idle power is subtracted as from a measurement. Raises UserError for a device that is not known, or
    that can't run the bundle.
    """
    from ..hardware import UseCase, bundle_workload, predict, read_profile

    if settings.power_model is None:
        raise UserError("no device was named to model the energy of")
    profile = read_profile(settings.power_model)
    painting = settings.painting
    case = UseCase(painting.steps, painting.guidance > 1, settings.keyframe_every, whole_every=painting.whole_every)
    found = predict(bundle_workload(open_manifest(bundle, verify=False)), profile, case)
    idle_watts = profile.idle_watts.value
    result = EnergyResult(
        method="",
        idle_watts=idle_watts,
        keyframe_joules=found.keyframe_joules - idle_watts * found.keyframe_seconds,
        frame_joules=found.joules_per_frame - idle_watts / found.frames_per_second,
        mean_watts=round(found.watts, 4),
    )
    return _with_method(result, f"modelled: {profile.name}", settings)


def _with_method(result: EnergyResult, method: str, settings: BenchSettings) -> EnergyResult:
    hours = None if settings.battery_wh is None else round(settings.battery_wh / result.mean_watts, 3)
    keyframe, frame = (float(f"{joules:.5g}") for joules in (result.keyframe_joules, result.frame_joules))
    return EnergyResult(method, result.idle_watts, keyframe, frame, result.mean_watts, hours)
