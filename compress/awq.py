"""Activation-aware scaling: inputs that fire strongly get a larger share of a block's 4-bit levels.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv 2306.00978, section 3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .int4 import FLOAT16_MAX, checked_importance, checked_weight, compress, decompress, row_parts

LARGEST_EXPONENT = 10.0  # e**10 is 22026: scaled inputs stay in float16's range


def awq_scales(
    weight: NDArray[np.floating[Any]],
    activation_rms: NDArray[np.floating[Any]],
    block: int = 64,
    symmetric: bool = True,
    grid: int = 20,
) -> NDArray[np.float32]:
    """A factor s for each column, so that (x / s) @ (weight * s in 4 bits)^T is close to x @ weight^T: (columns,).

    s is `activation_rms`**alpha, (columns,), over the geometric mean of its ends. Of alpha = 0, 1/grid, 2/grid .. 1
    the least error is taken: the sum over all elements of the squared error of quantize(weight * s) / s, weighted by
    the column's mean square activation. Alpha 0 is plain rounding, so the result is never worse than that. Channels
    that never fired keep factor 1. A factor that takes the weight out of float16's range is not considered.

    Raises ValueError as `int4.compress` does, for an `activation_rms` that is negative, not finite, or of another
    length, and for a grid below 1.
    """
    weight = checked_weight(weight, block)
    if grid < 1:
        raise ValueError(f"grid must be at least 1, got {grid}")
    shares = checked_importance(activation_rms, weight.shape[1], "activation_rms")
    importance = shares.astype(np.float64) ** 2
    live = activation_rms > 0
    exponents = np.zeros(weight.shape[1])
    if live.any():
        logarithms = np.log(activation_rms[live].astype(np.float64))
        exponents[live] = logarithms - (logarithms.min() + logarithms.max()) / 2
    peaks = np.maximum(weight.max(axis=0), -weight.min(axis=0))
    best = np.ones(weight.shape[1], np.float32)
    least = _error(weight, best, importance, block, symmetric)
    for step in range(1, grid + 1):
        exponent = np.clip(step / grid * exponents, -LARGEST_EXPONENT, LARGEST_EXPONENT)
        scales = np.exp(exponent).astype(np.float32)
        if (peaks * scales).max() > FLOAT16_MAX:
            continue
        error = _error(weight, scales, importance, block, symmetric)
        if error < least:
            best, least = scales, error
    return best


def _error(
    weight: NDArray[np.float32],
    scales: NDArray[np.float32],
    importance: NDArray[np.float64],
    block: int,
    symmetric: bool,
) -> float:
    total = 0.0
    for part in row_parts(weight.shape):
        error = decompress(compress(weight[part] * scales, block, symmetric)) / scales - weight[part]
        total += float((error * error).sum(axis=0, dtype=np.float64) @ importance)
    return total
