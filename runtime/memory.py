"""What a video has shown of what now lies outside its frame: it is known, and need not be painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .border import Layout
from .camera import CameraMotion, load_opencv
from .video_reader import Picture

REMEMBER_PX = 6.0  # the camera's motion after which a newer keyframe is remembered: moving the old one again blurs it
TRUSTED_LEVELS = 10.0  # what is remembered must match the live frame that well, where both show the same
JOIN_PX = 3.0  # what is remembered fades over that into what is painted


@dataclass(frozen=True)
class Known:
    """A canvas, (height, width, 3) uint8, and how far its pixels are known, (height, width) from 0 to 1."""

    canvas: Picture
    alpha: NDArray[np.float32]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where nothing is known."""
        return np.asarray(self.alpha == 0)


class Memory:
    """Remembers, from keyframe to keyframe, what the live frame showed before the camera moved on.

    What is remembered follows the camera, and is forgotten when the scene changes or when it does not match any more.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout, self._cv2 = layout, load_opencv()
        self._canvas: Picture | None = None
        self._shown: NDArray[np.uint8] = np.zeros((layout.size[1], layout.size[0]), np.uint8)  # 255 where it was live
        self._motion = CameraMotion()

    def move(self, motion: CameraMotion) -> None:
        """The camera moved."""
        self._motion = self._motion.then(motion)

    def forget(self) -> None:
        """The scene changed."""
        self._canvas = None

    def known(self, live: Picture) -> Known:
        """What is known around a live frame, which is in the centre and known itself."""
        canvas, shown = self._recalled(live)
        canvas[self._layout.centre], shown[self._layout.centre] = live, 255
        depth = self._cv2.distanceTransform(shown, self._cv2.DIST_L2, 3) / JOIN_PX
        alpha = np.clip(depth, 0, 1).astype(np.float32)
        alpha[self._layout.centre] = 1
        return Known(canvas, alpha)

    def remember(self, canvas: Picture, known: Known) -> None:
        """Keep a finished canvas, if the camera moved enough since the one that is kept."""
        if self._canvas is None or self._motion.reach_px(*self._layout.size) >= REMEMBER_PX:
            # what is known as it was seen, before it faded into what is painted
            self._canvas = np.where(known.mask[..., None], canvas, known.canvas)
            self._motion = CameraMotion()
            self._shown = np.where(known.mask, 0, 255).astype(np.uint8)

    def _recalled(self, live: Picture) -> tuple[Picture, NDArray[np.uint8]]:
        """What is remembered, moved to the present, and 255 where that is; nothing if it does not match."""
        cv2, (width, height) = self._cv2, self._layout.size
        nothing = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
        if self._canvas is None:
            return nothing
        matrix = self._motion.matrix(width, height)
        canvas: Any = cv2.warpAffine(
            self._canvas, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        shown: Any = cv2.warpAffine(self._shown, matrix, (width, height), flags=cv2.INTER_LINEAR)
        shown = np.where(shown == 255, 255, 0).astype(np.uint8)
        shown_live = shown[self._layout.centre] == 255
        if not shown_live.any():
            self.forget()
            return nothing
        difference = cv2.absdiff(canvas[self._layout.centre], live)[shown_live]
        if difference.mean() > TRUSTED_LEVELS:
            self.forget()
            return nothing
        canvas[shown == 0] = 0
        return canvas, shown
