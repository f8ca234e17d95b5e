"""Whether the machine runs at its usual speed: it may have several, as where virtual cores share a real one by turns.

A probe, a small chain of layers, is timed before and after what is to be timed. Runs between two probes at the speed
that was usual at the start count, and no others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WATCH_SECONDS = 20.0
TOLERANCE = 0.15
PATIENCE_SECONDS = 30.0  # of waiting for the usual speed; after that what comes is taken
RUNS = 3  # of the probe at a time, of which the fastest counts


@dataclass(frozen=True)
class Probe:
    """What is run to tell the speed, and what it usually takes."""

    run: Callable[[], object]
    usual_seconds: float

    @classmethod
    def watching(cls, run: Callable[[], object], seconds: float = WATCH_SECONDS) -> Probe:
        """Watch the machine for a while: what a run takes at the median is usual."""
        taken = [_fastest(run)]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            taken.append(_fastest(run))
        return cls(run, float(np.median(taken)))

    def is_usual(self) -> bool:
        """Whether the machine is neither slower nor faster now."""
        return abs(_fastest(self.run) / self.usual_seconds - 1) <= TOLERANCE

    def during(self, timed: Callable[[], float]) -> float:
        """What `timed` gives when the machine is at its usual speed before and after it.

        After PATIENCE_SECONDS without that, what it gave last.
        """
        end = time.perf_counter() + PATIENCE_SECONDS
        while True:
            before = self.is_usual()
            late = time.perf_counter() > end
            if before or late:
                found = timed()
                if late or self.is_usual():
                    return found


def _fastest(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return min(taken)
