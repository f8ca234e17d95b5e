"""How steady a border is from frame to frame, and how a zoom's pictures drift over many keyframes.

Pictures are uint8 (height, width, 3) RGB; masks are (height, width), True where the picture was painted. Levels are
those of 8 bits, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.camera import load_opencv
from .quality import Mask, Picture

Flow = NDArray[np.float32]


def backward_flow(previous: Picture, current: Picture) -> Flow:
    """Where each pixel of `current` was in `previous`, (height, width, 2) as x and y offsets in pixels.

    Source: Kroeger et al. 2016, dense inverse search, OpenCV's medium preset.
    """
    cv2 = load_opencv()
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (current, previous)]
    found: Flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    return found


def flicker_levels(previous: Picture, current: Picture, mask: Mask, flow: Flow) -> float:
    """Mean absolute difference between a frame and the one before, warped by the flow, where the mask is True.

    `flow` is a `backward_flow`, best of the true pictures: the border's own would explain its flicker as motion. Pixels
    that came in from outside are left out. Lower is better; a warp alone costs something, so compare with the truth's.
    Not-a-number if no pixel is left. Source: the warping error of Lai et al. 2018 ("Learning blind video temporal
    consistency"), with absolute instead of squared differences.
    """
    height, width = mask.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    warped: Any = load_opencv().remap(previous, x, y, load_opencv().INTER_LINEAR)
    stays = mask & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if not stays.any():
        return float("nan")
    return float(np.abs(warped[stays].astype(np.float64) - current[stays]).mean())


@dataclass(frozen=True)
class Statistics:
    """Of some pixels: mean colour, standard deviation of their brightness, and mean size of its Laplacian (detail)."""

    mean_rgb_levels: tuple[float, float, float]
    contrast_levels: float
    detail_levels: float


def statistics(picture: Picture, mask: Mask) -> Statistics:
    """Colour and detail where the mask is True. The Laplacian is of 4 neighbours, the rim of the picture left out.

    Raises ValueError when the mask has no pixel inside the rim.
    """
    grey = picture.astype(np.float64).mean(axis=2)
    inside = np.abs(4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:])
    within = mask[1:-1, 1:-1]
    if not within.any():
        raise ValueError("the mask has no pixel inside the picture's rim")
    red, green, blue = picture[mask].astype(np.float64).mean(axis=0).tolist()
    return Statistics((red, green, blue), float(grey[mask].std()), float(inside[within].mean()))


@dataclass(frozen=True)
class Drift:
    """How the last of a series of pictures differ from the first: 0 levels and a ratio of 1 are none."""

    colour_levels: float  # largest change of a channel's mean
    contrast_ratio: float
    detail_ratio: float


def drift(series: Sequence[Statistics], window: int) -> Drift:
    """The change from the mean of the first `window` statistics to that of the last.

    Raises ValueError for a series shorter than two windows.
    """
    if window < 1 or len(series) < 2 * window:
        raise ValueError(f"drift needs at least {2 * window} pictures, got {len(series)}")
    first, last = (
        np.array([[*each.mean_rgb_levels, each.contrast_levels, each.detail_levels] for each in part]).mean(axis=0)
        for part in (series[:window], series[-window:])
    )
    contrast, detail = last[3:] / first[3:]
    return Drift(float(np.abs(last[:3] - first[:3]).max()), float(contrast), float(detail))
