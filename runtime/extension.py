"""A picture extended over what is to be painted: smooth colours that continue those at its edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def extended(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture (h, w, 3), where `mask` (h, w) is True filled with what is around, ever smoother with the distance.

    Nothing else changes. A picture that is masked wholly becomes grey.

    Source: Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4 (push-pull).
    """
    if mask.all():
        return np.full_like(picture, 128)
    filled = _push_pull(picture.astype(np.float32), (~mask).astype(np.float32)[..., None])
    return np.where(mask[..., None], np.rint(filled).clip(0, 255).astype(np.uint8), picture)


def _push_pull(colours: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill what has the weight 0 (pull down to where every pixel has some, and push back up what is missing)."""
    if weights.all():
        return colours
    height, width = weights.shape[:2]
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    known = np.pad(weights, padding)
    sums = _summed(np.pad(colours, padding) * known)
    counts = _summed(known)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    coarse = _push_pull(means, np.minimum(counts, 1))
    return weights * colours + (1 - weights) * _doubled(coarse)[:height, :width]


def _summed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sums of squares of four pixels."""
    height, width, channels = values.shape
    summed: NDArray[np.float32] = values.reshape(height // 2, 2, width // 2, 2, channels).sum(axis=(1, 3))
    return summed


def _doubled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Twice as high and as wide, linear in between."""
    for axis in (0, 1):
        before, after = _shifted(values, axis, 1), _shifted(values, axis, -1)
        pair = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis=axis + 1)
        shape = list(values.shape)
        shape[axis] *= 2
        values = pair.reshape(shape)
    return values


def _shifted(values: NDArray[np.float32], axis: int, by: int) -> NDArray[np.float32]:
    """Moved along an axis by one pixel, the outermost repeated."""
    indices = np.clip(np.arange(values.shape[axis]) - by, 0, values.shape[axis] - 1)
    return values.take(indices, axis=axis)
