"""How the camera moved between two frames of a video: a shift, a turn and a zoom, from dense optical flow.

What lies outside a frame moves as the camera moves, so what is painted there can follow it. The flow within a frame
(Kroeger et al. 2016, "Fast optical flow using dense inverse search") is fitted by a similarity that most of it near
the frame's edges agrees with (RANSAC): that extrapolates, where the flow itself ends at the edge, and what moves by
itself inside does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingPackageError

if TYPE_CHECKING:
    from .video_reader import Picture

FLOW_SIDE_PX = 192  # flow is computed on frames reduced to that
MIN_FLOW_SIDE_PX = 16  # OpenCV crashes on less
EDGE_FRACTION = 1 / 4  # of a side: flow that near an edge is fitted
GRID_PX = 4  # one sample of the flow in so many reduced pixels
MIN_SAMPLES = 12
MIN_STEP_LEVELS = 4.0  # flow counts where neighbours differ by more; elsewhere it is a guess
INLIER_PX = 0.3  # of the reduced frame
MIN_INLIERS_FRACTION = 0.3
MIN_COVERED_FRACTION = 0.6  # of a frame, by an anchor
CUT_CORRELATION = 0.4  # below, the frame is not the one before, moved
CUT_LEVELS = 12.0  # and their grey values must differ by this much on average


@dataclass(frozen=True)
class CameraMotion:
    """Where a point of an earlier frame is in a later one: a similarity of positions from the centre, in pixels.

    A point (x, y) goes to (a x - b y + dx, b x + a y + dy).
    """

    a: float = 1.0
    b: float = 0.0
    dx: float = 0.0
    dy: float = 0.0

    def then(self, later: CameraMotion) -> CameraMotion:
        """This motion, followed by another."""
        a, b, x, y = later.a, later.b, self.dx, self.dy
        return CameraMotion(
            a * self.a - b * self.b, a * self.b + b * self.a, a * x - b * y + later.dx, b * x + a * y + later.dy
        )

    def inverse(self) -> CameraMotion:
        """The way back."""
        square = self.a**2 + self.b**2
        a, b = self.a / square, -self.b / square
        return CameraMotion(a, b, -(a * self.dx - b * self.dy), -(b * self.dx + a * self.dy))

    def matrix(self, width: int, height: int) -> NDArray[np.float64]:
        """The (2, 3) matrix of the motion for pixel indices of pictures of a size."""
        x, y = (width - 1) / 2, (height - 1) / 2
        turn = np.array([[self.a, -self.b], [self.b, self.a]])
        shift = np.array([self.dx + x, self.dy + y]) - turn @ [x, y]
        return np.column_stack([turn, shift])

    def reach_px(self, width: int, height: int) -> float:
        """By how far it moves the corner of a picture that it moves most."""
        corners = np.array([[x, y] for x in (-width / 2, width / 2) for y in (-height / 2, height / 2)])
        moved = corners @ np.array([[self.a, self.b], [-self.b, self.a]]) + [self.dx, self.dy]
        return float(np.hypot(*(moved - corners).T).max())


@dataclass(frozen=True)
class Step:
    """From one frame to the next: the motion, or that the scene changed and there is none."""

    motion: CameraMotion
    is_cut: bool = False


class Camera:
    """Follows the camera through frames of one size, uint8 RGB (height, width, 3), given in order.

    A frame is compared with an anchor, an earlier frame moved as the camera is known to have moved, so that errors do
    not add up from frame to frame. The anchor is given up for the last frame where it covers too little of the new one.
    """

    def __init__(self) -> None:
        self._cv2 = load_opencv()
        self._flow = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(1)
        self._flow.setVariationalRefinementIterations(0)  # it is smooth already where the fit looks, and more exact
        self._anchor: NDArray[np.uint8] | None = None
        self._last: NDArray[np.uint8] | None = None
        self._motion = CameraMotion()  # from the anchor to the last frame, both reduced

    def step(self, frame: Picture) -> Step:
        """How the camera moved since the frame before; no motion for the first."""
        reduced = self._reduced(frame)
        last, self._last = self._last, reduced
        if last is None or self._anchor is None:
            self.anchor()
            return Step(CameraMotion())
        covered = self._moved(np.full_like(last, 255), self._motion)
        if covered.mean() < 255 * MIN_COVERED_FRACTION:
            self._anchor, self._motion = last, CameraMotion()
            covered[:] = 255
        moved = self._moved(self._anchor, self._motion, borderMode=self._cv2.BORDER_REPLICATE)
        motion = self._fitted(moved, reduced, covered == 255)
        if self._is_cut(moved, reduced, motion):
            self.anchor()
            return Step(CameraMotion(), is_cut=True)
        self._motion = self._motion.then(motion)
        factor = frame.shape[1] / reduced.shape[1]
        return Step(CameraMotion(motion.a, motion.b, motion.dx * factor, motion.dy * factor))

    def anchor(self) -> None:
        """Compare the next frames with the last one."""
        self._anchor, self._motion = self._last, CameraMotion()

    def _moved(self, grey: NDArray[np.uint8], motion: CameraMotion, **border: int) -> NDArray[np.uint8]:
        height, width = grey.shape
        return np.asarray(self._cv2.warpAffine(grey, motion.matrix(width, height), (width, height), **border))

    def _reduced(self, frame: Picture) -> NDArray[np.uint8]:
        grey = self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        factor = min(1.0, max(FLOW_SIDE_PX / max(height, width), MIN_FLOW_SIDE_PX / min(height, width)))
        if factor == 1:
            return np.asarray(grey)
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        return np.asarray(self._cv2.resize(grey, size, interpolation=self._cv2.INTER_AREA))

    def _fitted(self, last: NDArray[np.uint8], reduced: NDArray[np.uint8], covered: NDArray[np.bool_]) -> CameraMotion:
        height, width = reduced.shape
        if min(height, width) < MIN_FLOW_SIDE_PX:
            return CameraMotion()
        flow = self._flow.calc(last, reduced, None)
        points = _textured(last, covered)
        if len(points) < MIN_SAMPLES:
            return CameraMotion()
        centred = points - np.array([(width - 1) / 2, (height - 1) / 2])
        moved = centred + flow[points[:, 1], points[:, 0]]
        matrix, inliers = self._cv2.estimateAffinePartial2D(
            centred.astype(np.float32), moved.astype(np.float32), method=self._cv2.RANSAC,
            ransacReprojThreshold=INLIER_PX, maxIters=500, confidence=0.995, refineIters=10,
        )  # fmt: skip
        if matrix is None or not np.isfinite(matrix).all() or inliers.mean() < MIN_INLIERS_FRACTION:
            return CameraMotion()
        motion = CameraMotion(*map(float, (matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2])))
        is_sane = 0.5 < np.hypot(motion.a, motion.b) < 2
        return motion if is_sane else CameraMotion()

    def _is_cut(self, last: NDArray[np.uint8], reduced: NDArray[np.uint8], motion: CameraMotion) -> bool:
        moved = self._moved(last, motion, borderMode=self._cv2.BORDER_REPLICATE)
        one, other = moved.astype(np.float32), reduced.astype(np.float32)
        if abs(one - other).mean() < CUT_LEVELS:
            return False
        one, other = one - one.mean(), other - other.mean()
        spread = float(np.sqrt((one**2).sum() * (other**2).sum()))
        return spread > 0 and float((one * other).sum()) < CUT_CORRELATION * spread


def _textured(grey: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The points (x, y) of a grid near the edges, and covered, where there is something to follow, (n, 2)."""
    height, width = grey.shape
    y, x = np.mgrid[1 : height - 1 : GRID_PX, 1 : width - 1 : GRID_PX]
    levels = grey.astype(np.int16)
    across, down = levels[y, x + 1] - levels[y, x - 1], levels[y + 1, x] - levels[y - 1, x]
    strength = np.hypot(across, down)
    depth = EDGE_FRACTION * min(height, width)
    near = (np.minimum(x, width - 1 - x) < depth) | (np.minimum(y, height - 1 - y) < depth)
    points: NDArray[np.int64] = np.stack([x, y], -1)[near & covered[y, x] & (strength > MIN_STEP_LEVELS)]
    return points


def load_opencv() -> Any:
    """The module cv2; raises MissingPackageError."""
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError("opencv-python-headless", "video", "zooming out of a video") from error
    return cv2
