"""GPTQ: 4-bit codes that make up for each other's rounding where inputs are correlated.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323, section 3, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cholesky import damped_factor
from .int4 import BlockWeights, Clip, checked_importance, checked_weight, decode, fit, nearest_codes


def gptq(
    weight: NDArray[np.floating[Any]],
    covariance: NDArray[np.floating[Any]],
    block: int = 64,
    symmetric: bool = True,
    clip: Clip = "none",
    damping_fraction: float = 0.01,
    positive: bool = False,
) -> BlockWeights:
    """`weight` in 4 bits, rounded column by column; later columns take over the error that they can make up for.

    The error that is kept small is that of the outputs, the trace of (W - Q) C (W - Q)^T: weight W (rows, columns),
    covariance C (columns, columns), which is the mean of x x^T over calibration inputs. Rounding is greedy: the error
    is nearly always below that of `int4.compress`, but that is no theorem; with a diagonal covariance the codes are
    the same. The scales of a block are chosen when it is reached; clip "mse" weighs columns by C's diagonal. C may be
    singular: `damping_fraction` of the mean of its diagonal is added to the diagonal. An input that never fired, with
    a zero there, stays out of that mean and is rounded to nearest: it may fire later. Takes memory for one or two
    float32 arrays of C's size, float64 ones where C is so nearly singular that it takes their digits.

    Raises ValueError as `int4.compress` does, and if the covariance does not fit the weight, is not finite or is
    not positive definite after damping.
    """
    weight = checked_weight(weight, block)
    rows, columns = weight.shape
    if covariance.shape != (columns, columns):
        raise ValueError(f"the covariance must be ({columns}, {columns}), got shape {covariance.shape}")
    importance = checked_importance(covariance.diagonal(), columns, "the diagonal of the covariance")
    factor = _factor(covariance, damping_fraction)
    blocks = -(-columns // block)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, blocks), np.float16)
    zero_points = np.empty((rows, blocks), np.uint8)
    errors = np.empty((rows, columns), np.float32)  # weight minus its decoded code, of the columns done
    for index, start in enumerate(range(0, columns, block)):
        run = slice(start, min(start + block, columns))
        corner = np.linalg.inv(factor[run, run])
        updated = weight[:, run] + errors[:, :start] @ factor[:start, run] @ corner
        scales[:, index], zero_points[:, index] = fit(updated, importance[run], symmetric, clip, positive)
        codes[:, run] = _round_columns(updated, corner, scales[:, index], zero_points[:, index])
        errors[:, run] = weight[:, run] - decode(codes[:, run], scales[:, index, None], zero_points[:, index, None])
    return BlockWeights(codes, scales, zero_points, block)


def _factor(covariance: NDArray[np.floating[Any]], damping_fraction: float) -> NDArray[np.float32]:
    """The upper triangular R with R R^T = the damped covariance, over the mean of the live diagonal.

    The paper's factor is the inverse of R. With R no large inverse is needed: the error of output direction j is
    that of column j plus what the columns before it left, the sum of errors times R's column j, so the columns of a
    block are shifted to take back what all the columns before the block left, with the inverse of one small corner.
    """
    if not (damping_fraction >= 0 and np.isfinite(damping_fraction)):
        raise ValueError(f"damping_fraction must be finite and not negative, got {damping_fraction}")
    if not np.isfinite(covariance).all():
        raise ValueError("the covariance has NaN or infinity in it")
    diagonal = covariance.diagonal().astype(np.float64)
    live = diagonal > 0
    mean = diagonal[live].mean() if live.any() else 1.0
    damped = np.where(live, diagonal / mean, 1) + damping_fraction
    try:
        return damped_factor(covariance, mean, damped, np.dtype(np.float32))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the covariance is not positive definite with damping_fraction {damping_fraction}: raise it"
        ) from error


def _round_columns(
    updated: NDArray[np.float32],
    corner: NDArray[np.float32],
    stored_scales: NDArray[np.float16],
    zero_points: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """The codes of a block's columns, left to right (the inner loop of algorithm 1): (rows, n) -> (rows, n)."""
    columns, scales = np.ascontiguousarray(updated.T), stored_scales.astype(np.float32)
    codes = np.empty(columns.shape, np.uint8)
    for j, column in enumerate(columns):
        codes[j] = nearest_codes(column, scales, zero_points)
        error = (column - decode(codes[j], scales, zero_points)) / corner[j, j]
        columns[j + 1 :] -= np.outer(corner[j, j + 1 :], error)
    return codes.T
