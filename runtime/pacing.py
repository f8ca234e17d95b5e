"""Frames at a steady rate: when each is due, which are left out when time is short, and how steady it was."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW_SECONDS = 10.0


@dataclass(frozen=True)
class FrameClock:
    """Frame i is due at `start + i / fps`, in seconds of whatever clock `start` is of."""

    start: float
    fps: float

    def due(self, index: int) -> float:
        """When a frame is due."""
        return self.start + index / self.fps

    def following(self, index: int, now: float) -> int:
        """The frame to show after `index`: the next, or the last that is due where more than one is already."""
        return max(index + 1, math.floor((now - self.start) * self.fps + 1e-9))


@dataclass(frozen=True)
class Pacing:
    """How steadily frames came: of the intervals between them the median, 95th and 99th percentile, and the longest.

    `dropped` are frames that were left out since they would have come too late. Lower is better but for `fps`.
    """

    fps: float
    frames: int
    dropped: int
    interval_ms: float
    interval_p95_ms: float
    interval_p99_ms: float
    interval_max_ms: float


def pacing(times: Sequence[float], dropped: int) -> Pacing:
    """Of frames shown at `times`, seconds in ascending order; zeros for fewer than two."""
    if len(times) < 2:
        return Pacing(0.0, len(times), dropped, 0.0, 0.0, 0.0, 0.0)
    intervals_ms = 1e3 * np.diff(np.asarray(times, np.float64))
    median, p95, p99, longest = (float(value) for value in np.percentile(intervals_ms, (50, 95, 99, 100)))
    return Pacing((len(times) - 1) / (times[-1] - times[0]), len(times), dropped, median, p95, p99, longest)


class RecentFrames:
    """The frames of the last WINDOW_SECONDS."""

    def __init__(self) -> None:
        self._shown: deque[tuple[float, int]] = deque()  # when, and how many were left out just before

    def add(self, now: float, dropped: int) -> None:
        """A frame was shown, after so many that were not."""
        self._shown.append((now, dropped))
        while self._shown[0][0] < now - WINDOW_SECONDS:
            self._shown.popleft()

    def clear(self) -> None:
        """Forget them, for instance since the zoom was stopped meanwhile."""
        self._shown.clear()

    def pacing(self) -> Pacing:
        """How steadily they came."""
        shown = list(self._shown)
        return pacing([time for time, _ in shown], sum(dropped for _, dropped in shown[1:]))
