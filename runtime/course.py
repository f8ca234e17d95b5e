"""The course of a zoom: on which frames its keyframes fall, and what is between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from . import geometry
from .errors import UserError

if TYPE_CHECKING:
    from .zoom import Motion

Closing = Literal["open", "end", "loop"]
WIDENING_AT_THE_END = 2.0  # so many times as wide as the zoom in its centre is, at least, the picture that ends it


@dataclass(frozen=True)
class Course:
    """Keyframe 0 is on frame 0; the others are spread evenly over `spread_frames`, and one more may come at the end.

    That one is `closing_frames` later: there the zoom lies in the centre of a picture that was given.
    """

    frame_count: int
    zoom_rate: float
    fps: float
    spread: int  # keyframes after the first that are spread evenly
    spread_frames: int
    closing_frames: int = 0

    @classmethod
    def of(cls, motion: Motion, closing: Closing = "open") -> Course:
        """The course that a motion takes, at most `keyframe_every` frames from a keyframe to the next.

        Closing "end": the last frame shows a picture that was given, the zoom in its centre. "loop": so would the
        frame after the last. Either takes longer than a keyframe usually does, until the view has widened
        WIDENING_AT_THE_END times, so that this picture is more than a thin edge.

        Raises UserError for a zoom that is too short to be closed.
        """
        frames, every = motion.frame_count, motion.keyframe_every
        if closing == "open":
            return cls(frames, motion.zoom_rate, motion.fps, motion.painted_count, motion.painted_count * every)
        last = frames if closing == "loop" else frames - 1
        closing_frames = math.ceil(motion.fps * math.log(WIDENING_AT_THE_END) / math.log(motion.zoom_rate) - 1e-9)
        if last < closing_frames:
            seconds = math.ceil((frames + closing_frames - last) / motion.fps * 1000) / 1000
            raise UserError(
                f"in {motion.seconds:g} seconds the view widens {motion.zoom_rate ** (last / motion.fps):.3g} times; a "
                f"zoom into a given picture has to widen {WIDENING_AT_THE_END:g} times",
                hint=f"give --seconds {seconds:g} or more, or a higher --zoom-rate",
            )
        free = last - closing_frames
        spread = -(-free // every)
        if spread and motion.zoom_rate ** (-(free // spread) / motion.fps) > geometry.MAX_SCALE:
            spread = free // every
        if spread == 0:
            return cls(frames, motion.zoom_rate, motion.fps, 0, 0, last)
        return cls(frames, motion.zoom_rate, motion.fps, spread, free, closing_frames)

    @property
    def last(self) -> int:
        """The number of the last keyframe."""
        return self.spread + (self.closing_frames > 0)

    def frame_of(self, keyframe: int) -> int:
        """The frame that a keyframe falls on."""
        if keyframe > self.spread:
            return self.spread_frames + self.closing_frames
        return (2 * keyframe * self.spread_frames + self.spread) // max(2 * self.spread, 1)

    def seconds_of(self, keyframe: int) -> float:
        """When the edge of a keyframe comes into view, in seconds of the zoom-out."""
        return self.frame_of(max(keyframe - 1, 0)) / self.fps

    def scale(self, keyframe: int) -> float:
        """By how much the keyframe before appears shrunk in this one."""
        return math.pow(self.zoom_rate, -(self.frame_of(keyframe) - self.frame_of(keyframe - 1)) / self.fps)

    def locate(self, frame: int) -> tuple[int, float]:
        """The keyframe at or before a frame, and how much of the way to the next one is done, 0 to below 1."""
        if frame >= self.spread_frames:
            keyframe = self.spread
        else:
            keyframe = frame * self.spread // self.spread_frames
            while self.frame_of(keyframe + 1) <= frame:
                keyframe += 1
            while self.frame_of(keyframe) > frame:
                keyframe -= 1
        if keyframe < self.last and frame == self.frame_of(keyframe + 1):
            keyframe += 1
        start = self.frame_of(keyframe)
        return keyframe, 0.0 if frame == start else (frame - start) / (self.frame_of(keyframe + 1) - start)


def render(
    course: Course,
    keyframe_at: Callable[[int], NDArray[np.uint8]],
    feather_px: float,
    frames: Iterable[int] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Frames of a course, uint8 (height, width, 3), by default all in their order.

    `keyframe_at` gives a keyframe by its number; it is called when the first frame that shows it is asked for, and
    two are held at a time.
    """
    held: dict[int, NDArray[np.uint8]] = {}
    for frame in range(course.frame_count) if frames is None else frames:
        inner, done = course.locate(frame)
        shown = [inner, inner + 1] if done else [inner]
        for keyframe in set(held).difference(shown):
            del held[keyframe]
        for keyframe in shown:
            if keyframe not in held:
                held[keyframe] = keyframe_at(keyframe)
        if done:
            yield geometry.in_between(held[inner], held[inner + 1], course.scale(inner + 1), done, feather_px)
        else:
            yield held[inner].copy()
