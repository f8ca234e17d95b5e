"""What a benchmark runs: the same for every bundle that it compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.bundle import COMPONENTS
from ..runtime.errors import UserError
from ..runtime.inpainting import Painting
from ..runtime.zoom import Motion

DEMO_PICTURE = Path(__file__).parent.parent / "models" / "demo" / "picture.png"
DEMO_PROMPT = "an underwater reef with red fish and red corals"
MAX_RUNS = 10_000
MIN_RUNS = 3
MAX_IDLE_SECONDS = 600
MAX_STRIP_FRAMES = 9


@dataclass(frozen=True)
class BenchSettings:
    """The picture and the zoom out of it, and how often each component runs.

    A component's timed runs, after `warm_ups` untimed ones, end at `runs`, or when `budget_seconds` are over
    and MIN_RUNS are done, whichever is first: a component may take a millisecond or half a minute.
    Raises UserError for values that cannot be measured with.
    """

    image: Path | None = None  # None: the demo picture
    prompt: str = DEMO_PROMPT
    seconds: float = 4.0
    keyframe_every: int = 30
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    runs: int = 30
    warm_ups: int = 3
    budget_seconds: float = 30.0
    idle_seconds: float = 3.0  # of rest before the zoom, in which the idle power is measured, where it can be
    power_model: str | None = None  # the device that energy is modelled for where it can't be measured
    battery_wh: float | None = None  # whose hours are told
    clip: Path | None = None  # the folder of a CLIP that compares the last keyframe with the prompt

    def __post_init__(self) -> None:
        if not 1 <= self.runs <= MAX_RUNS:
            raise UserError(f"runs must be 1 to {MAX_RUNS}, got {self.runs}", hint="30 give a useful spread")
        if not 0 <= self.warm_ups <= MAX_RUNS:
            raise UserError(f"warm-ups must be 0 to {MAX_RUNS}, got {self.warm_ups}", hint="3 are usual")
        if not self.budget_seconds > 0:
            raise UserError(f"the budget must be above 0 seconds, got {self.budget_seconds}", hint="30 are usual")
        if not 0 < self.idle_seconds <= MAX_IDLE_SECONDS:
            raise UserError(f"idle seconds must be above 0, to {MAX_IDLE_SECONDS}, got {self.idle_seconds}")
        if self.battery_wh is not None and not 0 < self.battery_wh < 1e6:
            raise UserError(f"a battery has more than 0 Wh, got {self.battery_wh:g}", hint="a phone's has about 15")
        if self.keyframe_every < 2:
            raise UserError(
                f"a benchmark needs frames between keyframes, got a keyframe every {self.keyframe_every}",
                hint="give 2 or more",
            )
        if self.motion.frame_count <= self.keyframe_every:
            raise UserError(
                f"a zoom of {self.seconds:g} seconds, {self.motion.frame_count} frames, ends before its first painted "
                f"keyframe, frame {self.keyframe_every}",
                hint=f"make it {(self.keyframe_every + 1) / self.motion.fps:.3g} seconds or longer",
            )
        _ = self.painting

    @property
    def motion(self) -> Motion:
        """How the camera moves; raises UserError for values out of range."""
        return Motion(seconds=self.seconds, keyframe_every=self.keyframe_every)

    @property
    def painting(self) -> Painting:
        """How a keyframe is painted, with the checkpoint's own scheduler; raises UserError as `motion` does."""
        return Painting(steps=self.steps, guidance=self.guidance, seed=self.seed)

    @property
    def picture(self) -> Path:
        """The picture to zoom out of; raises UserError when there is none."""
        if self.image is None and not DEMO_PICTURE.is_file():
            raise UserError("this installation has no demo picture to zoom out of", hint="give one with --image FILE")
        return self.image or DEMO_PICTURE

    @property
    def keyframe_indices(self) -> range:
        """The frames that show the given picture, the first, or a painted keyframe, exactly."""
        return range(0, self.motion.frame_count, self.keyframe_every)

    @property
    def strip_indices(self) -> list[int]:
        """At most MAX_STRIP_FRAMES frames spread evenly from the first to the last of `keyframe_indices`."""
        last = self.keyframe_indices[-1]
        count = min(MAX_STRIP_FRAMES, 2 * len(self.keyframe_indices) - 1)
        return [round(last * i / (count - 1)) for i in range(count)]

    def stage_count(self, bundles: int) -> int:
        """How many times `run_bench` calls `on_progress`, if it succeeds, for that many bundles."""
        return 1 + bundles * (1 + len(COMPONENTS) + self.motion.painted_count + 1) + 1


def to_json(value: object) -> bytes:
    """Settings, or what holds them, as JSON: a path becomes a string."""
    return msgspec.json.encode(value, enc_hook=str)


def from_json(data: bytes | str, kind: Any) -> Any:
    """The reverse of `to_json`, checked to be of a type or union; raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=kind, dec_hook=lambda path_type, value: path_type(value))
