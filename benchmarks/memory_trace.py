"""Resident memory of this process over time, sampled in a thread beside the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from .results import MemorySample, Stage

INTERVAL_SECONDS = 0.05
MAX_SAMPLES = 240  # as many as a chart shows


class MemoryTrace:
    """Samples while its context lasts; times are in seconds since `began`, on the clock of `time.monotonic`.

    When there are MAX_SAMPLES, every second one is dropped and the interval doubled: a trace of any length fits.
    """

    def __init__(self, began: float, interval_seconds: float = INTERVAL_SECONDS, limit: int = MAX_SAMPLES) -> None:
        self._began, self._interval_seconds, self._limit = began, interval_seconds, limit
        self._samples: list[MemorySample] = []
        self._stages: list[Stage] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> MemoryTrace:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def hearing(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """A `report` after which a stage of that name begins."""

        def heard(text: str) -> None:
            self._stages.append(Stage(text, self._now()))
            report(text)

        return heard

    @property
    def samples(self) -> tuple[MemorySample, ...]:
        """What was sampled, the first at once."""
        return tuple(self._samples)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order that they began in."""
        return tuple(self._stages)

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _run(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self._samples.append(MemorySample(self._now(), int(process.memory_info().rss)))
            if len(self._samples) >= self._limit:
                del self._samples[1::2]
                self._interval_seconds *= 2
            if self._stopped.wait(self._interval_seconds):
                break
