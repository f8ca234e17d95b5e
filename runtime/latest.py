"""The newest frame of a live zoom, for any number of viewers: who is slow misses some, and keeps nobody waiting."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from .inpainting import Picture

JPEG_QUALITY = 88


@dataclass
class Frame:
    """A frame as it was shown; `due` is in the seconds of time.monotonic."""

    number: int
    picture: Picture
    due: float

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._jpeg = b""

    def jpeg(self) -> bytes:
        """As a JPEG file, made when first asked for."""
        from PIL import Image

        with self._lock:
            if not self._jpeg:
                buffer = io.BytesIO()
                Image.fromarray(self.picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
                self._jpeg = buffer.getvalue()
            return self._jpeg


class LatestFrame:
    """Where the renderer leaves a frame, and viewers find it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._latency_ms: deque[float] = deque(maxlen=100)

    def publish(self, picture: Picture, due: float) -> None:
        """Make it the newest."""
        with self._changed:
            self._frame = Frame(self._frame.number + 1 if self._frame else 1, picture, due)
            self._changed.notify_all()

    def newer(self, number: int, timeout_seconds: float) -> Frame | None:
        """The newest frame, once it has a higher number than this; None when it took longer."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None and self._frame.number > number, timeout_seconds)
            return self._frame if self._frame is not None and self._frame.number > number else None

    def sent(self, frame: Frame) -> None:
        """A viewer's connection has taken it."""
        with self._changed:
            self._latency_ms.append(1e3 * (time.monotonic() - frame.due))

    @property
    def latency_ms(self) -> float | None:
        """The median time from due to sent; None before the first."""
        with self._changed:
            return float(np.median(self._latency_ms)) if self._latency_ms else None
