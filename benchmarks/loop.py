"""A bundle's zoom as a short video to put inside a page: out and back in again, so that it loops without a jump."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime import MissingPackageError, VideoWriter
from .report_parts import smaller


def loop_data_uri(frames: NDArray[np.uint8], fps: float) -> str | None:
    """An MP4 of uint8 RGB frames (frames, height, width, 3), shown smaller; None where PyAV is not installed."""
    small = [smaller(frame) for frame in frames]
    height, width = small[0].shape[:2]
    with tempfile.TemporaryDirectory(prefix="outzoom-loop-") as folder:
        path = Path(folder) / "zoom.mp4"
        try:
            with VideoWriter(path, width, height, fps) as writer:
                for frame in [*small, *small[-2:0:-1]]:
                    writer.write(frame)
        except MissingPackageError:
            return None
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
