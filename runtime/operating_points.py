"""The settings that a live zoom may run at, from the best picture to the least work.

Work is counted in calls of the whole UNet for one prompt, which take the same time each: a guided call is two, a
shallow one SHALLOW_WORK, and encoding, decoding and pasting of a keyframe together FIXED_WORK.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import geometry
from .bundle import Manifest
from .errors import UserError
from .inpainting import Painting
from .presets import PRESETS, preset
from .zoom import Motion

FIXED_WORK = 4.0
SHALLOW_WORK = 0.4
STEP_FRACTIONS = (0.75, 0.5, 0.35)  # of the steps that were asked for
MIN_STEPS = 4
INTERVAL_FACTORS = (1.4, 2.0)  # times the keyframe interval that was asked for
PACES = (0.7, 0.5, 0.35, 0.25)  # of the zoom rate that was asked for
MIN_SAVING = 0.05  # a point that saves less of the work than this isn't worth a change


@dataclass(frozen=True)
class OperatingPoint:
    """How keyframes are painted, after how many frames each, and how fast the camera moves: at `pace` times the rate.

    `calls` is the work of each call of the UNet that a keyframe takes; `fps` are the frames shown per second.
    """

    preset: str
    painting: Painting
    keyframe_every: int
    pace: float
    fps: float
    calls: tuple[float, ...]

    @property
    def work(self) -> float:
        """Of a keyframe."""
        return sum(self.calls) + FIXED_WORK

    @property
    def interval_seconds(self) -> float:
        """From one keyframe to the next, at this pace."""
        return self.keyframe_every / self.fps / self.pace

    @property
    def work_per_second(self) -> float:
        """That keyframes take when each is painted in time."""
        return self.work / self.interval_seconds


def presets_from(name: str, manifest: Manifest, changes: Mapping[str, Any]) -> dict[str, Painting]:
    """The preset of a name and all that are quicker, each with `changes`, by name.

    Of those that come after the first, what the bundle can't do is left out. Raises UserError for an unknown name.
    """
    names = list(PRESETS)
    chosen = {name: replace(preset(name), **changes)}
    for quicker in names[names.index(name) + 1 :]:
        painting = replace(PRESETS[quicker], **changes)
        if (manifest.has_shallow_unet or painting.whole_every == 1) and painting not in chosen.values():
            chosen[quicker] = painting
    return chosen


def operating_points(
    paintings: Mapping[str, Painting], motion: Motion, scheduler: dict[str, Any]
) -> tuple[OperatingPoint, ...]:
    """From the first painting at the motion's keyframe interval down, each with less work per second than the last.

    First come the other paintings, then fewer steps, then longer intervals as far as the geometry allows, then a
    slower camera. `scheduler` is the configuration of the checkpoint's own. Raises UserError for a painting that its
    scheduler can't do.
    """
    kept: list[OperatingPoint] = []
    for name, painting, every, pace in _candidates(paintings, motion):
        try:
            calls = call_work(painting, scheduler)
        except UserError:
            if not kept:
                raise
            continue  # a scheduler that can't do so few steps
        point = OperatingPoint(name, painting, every, pace, motion.fps, calls)
        if not kept or point.work_per_second <= kept[-1].work_per_second * (1 - MIN_SAVING):
            kept.append(point)
    return tuple(kept)


def call_work(painting: Painting, scheduler: dict[str, Any]) -> tuple[float, ...]:
    """The work of each call of the UNet that one keyframe takes."""
    schedule = painting.schedule(len(painting.make_scheduler(scheduler).timesteps))
    return tuple(
        (2 if painting.guidance > 1 and schedule.is_guided(call) else 1)
        * (1.0 if schedule.is_whole(call) else SHALLOW_WORK)
        for call in schedule.calls
    )


def longest_interval(motion: Motion) -> int:
    """The most frames from keyframe to keyframe that the geometry allows at the motion's zoom rate."""
    return math.floor(-motion.fps * math.log(geometry.MIN_SCALE) / math.log(motion.zoom_rate) * (1 - 1e-9))


def _candidates(paintings: Mapping[str, Painting], motion: Motion) -> Iterator[tuple[str, Painting, int, float]]:
    every, pace = motion.keyframe_every, 1.0
    for name, painting in paintings.items():
        yield name, painting, every, pace
    for steps in _fewer(painting.steps):
        painting = replace(painting, steps=steps)
        yield name, painting, every, pace
    for factor in INTERVAL_FACTORS:
        every = max(motion.keyframe_every, min(round(factor * motion.keyframe_every), longest_interval(motion)))
        yield name, painting, every, pace
    for pace in PACES:
        yield name, painting, every, pace


def _fewer(steps: int) -> Iterable[int]:
    return (max(round(fraction * steps), min(MIN_STEPS, steps)) for fraction in STEP_FRACTIONS)
