"""The geometry of the zoom-out: where a shrunk picture lies, what is left to paint, and the frames between.

Keyframe K[i+1] shows K[i], shrunk by `scale`, in its exact centre. At time t in [0, 1) between them the
camera sees the centred fraction c = scale ** (1 - t) of K[i+1], in which K[i] appears at scale ** t: by the
same factor smaller in every frame, within a pair of keyframes and across them. Positions are real numbers
(pixel i covers [i, i + 1)) and both pictures are resampled at them, so nothing snaps to the pixel grid.

Sizes are (width, height) in pixels, pictures are uint8 (height, width, 3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MIN_SCALE = 0.25  # below, the border would be magnified more than four times
MAX_SCALE = 0.97  # above, the border to paint is too thin for the inpainting model
MAX_FPS = 240
_FADE_START = 0.5  # from here to t = 1 the pasted inner keyframe fades into the outer one's own copy of it
_TOLERANCE_PX = 1e-6


def keyframe_scale(zoom_rate: float, keyframe_every: int, fps: float) -> float:
    """By how much one keyframe appears shrunk in the next: zoom_rate ** (-keyframe_every / fps).

    `zoom_rate` is by how much the view widens per second, above 1. Raises UserError, naming the options to
    change and values that work, if the result is outside [MIN_SCALE, MAX_SCALE].
    """
    if not 1 < zoom_rate < math.inf:
        raise UserError(
            f"--zoom-rate must be above 1, got {zoom_rate}", hint="1.5 makes the view half as wide again each second"
        )
    if not 0 < fps <= MAX_FPS:
        raise UserError(f"--fps must be above 0 and at most {MAX_FPS}, got {fps}", hint="try --fps 30")
    if not 1 <= keyframe_every <= 100_000:
        raise UserError(f"--keyframe-every must be 1 to 100000, got {keyframe_every}", hint="try 5")
    scale = math.pow(zoom_rate, -keyframe_every / fps)
    if MIN_SCALE <= scale <= MAX_SCALE:
        return scale
    given = f"--zoom-rate {zoom_rate:g} with --keyframe-every {keyframe_every} at --fps {fps:g}"
    if scale < MIN_SCALE:
        every = math.floor(-fps * math.log(MIN_SCALE) / math.log(zoom_rate) * (1 - 1e-9))
        rate = math.floor(MIN_SCALE ** (-fps / keyframe_every) * 1e4 * (1 - 1e-9)) / 1e4
        problem = f"shrinks each keyframe to {scale:.3g} of its size in the next, below {MIN_SCALE}"
        ways = [f"lower --keyframe-every to {every}"] * (every >= 1) + [f"lower --zoom-rate to {rate}"] * (rate > 1)
    else:
        every = math.ceil(-fps * math.log(MAX_SCALE) / math.log(zoom_rate) * (1 + 1e-9))
        rate = math.ceil(MAX_SCALE ** (-fps / keyframe_every) * 1e4 * (1 + 1e-9)) / 1e4
        problem = f"leaves each keyframe at {scale:.3g} of its size in the next, above {MAX_SCALE}"
        ways = [f"raise --keyframe-every to {every}", f"raise --zoom-rate to {rate}"]
    raise UserError(f"{given} {problem}", hint=" or ".join(ways))


def outside_mask(size: tuple[int, int], scale: float, margin_px: float = 0.0) -> NDArray[np.bool_]:
    """(height, width), True where a picture shrunk by `scale` into the centre does not cover a pixel fully.

    `margin_px` widens the area inwards, over the picture's edge.
    """
    width, height = size
    mask = np.ones((height, width), np.bool_)
    mask[slice(*_span(height, scale, margin_px)), slice(*_span(width, scale, margin_px))] = False
    return mask


def paste_centered(
    canvas: NDArray[np.uint8],
    picture: NDArray[np.uint8],
    scale: float,
    feather_px: float = 0.0,
    weight: float = 1.0,
) -> NDArray[np.uint8]:
    """A copy of `canvas` with `picture` in its centre, `scale` times as wide and as high as the canvas.

    Only pixels that the picture covers fully change. There its alpha rises linearly from 0 at its edge to 1
    at `feather_px` inside it, times `weight`. Raises ValueError for a scale outside (0, 1].
    """
    from PIL import Image

    result = Image.fromarray(canvas)
    _paste(result, Image.fromarray(picture), scale, feather_px, weight)
    return np.array(result)


def framed(
    picture: NDArray[np.uint8], around: NDArray[np.uint8], scale: float, feather_px: float = 0.0
) -> NDArray[np.uint8]:
    """The centred fraction `scale` of `picture`, where it is, with the rest of `around` about it.

    The alpha of `picture` rises linearly from 0 at the edge of that fraction to 1 at `feather_px` inside it.
    """
    from PIL import Image

    height, width = around.shape[:2]
    (left, right), (top, bottom) = _span(width, scale), _span(height, scale)
    alpha = np.minimum.outer(_alpha(height, scale, feather_px, 1), _alpha(width, scale, feather_px, 1))
    result = Image.fromarray(around)
    result.paste(Image.fromarray(picture[top:bottom, left:right]), (left, top), Image.fromarray(alpha))
    return np.array(result)


def in_between(
    inner: NDArray[np.uint8],
    outer: NDArray[np.uint8],
    scale: float,
    t: float,
    feather_px: float = 0.0,
) -> NDArray[np.uint8]:
    """The frame at time t in [0, 1] between keyframes `inner` (t = 0, exactly) and `outer` (t = 1, exactly).

    `inner`, the sharper, is pasted over `outer`. Its feather widens from 0 to `feather_px`, and from t = 0.5
    on it fades out: at the end `outer` holds it at that resolution itself, so no frame jumps at a keyframe.

    Raises ValueError if the shapes differ, or t or scale is out of range.
    """
    from PIL import Image

    if inner.shape != outer.shape:
        raise ValueError(f"the keyframes must have one shape, got {inner.shape} and {outer.shape}")
    if not (0 < scale < 1 and 0 <= t <= 1):
        raise ValueError(f"scale must be inside (0, 1) and t in [0, 1], got {scale} and {t}")
    weight, feather_px = 1 - _smoothstep((t - _FADE_START) / (1 - _FADE_START)), t * feather_px
    hole_scale, hole_feather = (scale**t, feather_px) if weight == 1 else (0.0, 0.0)
    frame = _ring(Image.fromarray(outer), scale ** (1 - t), hole_scale, hole_feather)
    if weight > 0:
        _paste(frame, Image.fromarray(inner), scale**t, feather_px, weight)
    return np.array(frame)


def _smoothstep(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _span(length: int, scale: float, inset_px: float = 0.0) -> tuple[int, int]:
    """The pixels [start, stop) wholly inside the centred fraction `scale`, `inset_px` from its ends."""
    start = math.ceil(length * (1 - scale) / 2 + inset_px - _TOLERANCE_PX)
    return (start, length - start) if 2 * start < length else (length // 2, length // 2)


def _ring(outer: Image.Image, crop: float, hole_scale: float, hole_inset_px: float) -> Image.Image:
    """The centred fraction `crop` of `outer` at full size, save for a centred hole to be pasted over."""
    from PIL import Image

    width, height = outer.size
    left, right = _span(width, hole_scale, hole_inset_px)
    top, bottom = _span(height, hole_scale, hole_inset_px)
    ring = Image.new("RGB", outer.size)
    strips = [
        (0, 0, width, top),
        (0, bottom, width, height),
        (0, top, left, bottom),
        (right, top, width, bottom),
    ]
    for strip in strips:
        if strip[0] < strip[2] and strip[1] < strip[3]:
            ring.paste(_resampled(outer, outer.size, 1 / crop, strip), strip[:2])
    return ring


def _paste(canvas: Image.Image, picture: Image.Image, scale: float, feather_px: float, weight: float) -> None:
    from PIL import Image

    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, got {scale}")
    (left, right), (top, bottom) = (_span(length, scale) for length in canvas.size)
    if left == right or top == bottom:
        return
    patch = _resampled(picture, canvas.size, scale, (left, top, right, bottom))
    across, down = (_alpha(length, scale, feather_px, weight) for length in canvas.size)
    canvas.paste(patch, (left, top), Image.fromarray(np.minimum.outer(down, across)))


def _resampled(
    picture: Image.Image, size: tuple[int, int], scale: float, region: tuple[int, int, int, int]
) -> Image.Image:
    """The pixels `region` of a frame of `size` with `picture` in its centre, `scale` times as large."""
    from PIL import Image

    def source(position: int, frame: int, length: int) -> float:
        edge = frame * (1 - scale) / 2
        return min(max((position - edge) / (frame * scale) * length, 0.0), length)

    left, top, right, bottom = region
    box = (
        source(left, size[0], picture.width),
        source(top, size[1], picture.height),
        source(right, size[0], picture.width),
        source(bottom, size[1], picture.height),
    )
    return picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box)


def _alpha(length: int, scale: float, feather_px: float, weight: float) -> NDArray[np.uint8]:
    """Alpha 0..255 along one axis for the pixels of `_span`, by their centres' distance to the edge."""
    start, stop = _span(length, scale)
    if feather_px <= 0.5:  # ends before the first pixel's centre
        return np.full(stop - start, round(255 * weight), np.uint8)
    centres = np.arange(start, stop) + 0.5 - length / 2
    distance_px = length * scale / 2 - np.abs(centres)
    alpha: NDArray[np.float64] = 255 * weight * np.clip(distance_px / feather_px, 0, 1)
    return np.rint(alpha).astype(np.uint8)
