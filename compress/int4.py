"""Block-wise 4-bit weights: each row is cut into runs of `block` inputs that share a scale and a zero point.

A weight is a matrix: its rows are output channels, its columns inputs. This is what ONNX's DequantizeLinear (opset
21, `block_size`) and ONNX Runtime's MatMulNBits read; packing two codes into a byte is left to who writes the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Clip = Literal["none", "mse"]
Scales = NDArray[np.float16] | NDArray[np.float32]  # as they are stored, or to compute with

BLOCKS = (16, 32, 64, 128)
FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-24  # its smallest step above zero
ELEMENTS_AT_ONCE = 1 << 17  # few enough to stay in a processor's cache, whatever the size of the weight
# Of the scale that just covers a block. Below 1 the ends are cut off and the rest is finer; above 1 the shorter end,
# which symmetric codes reach only to 7/8 of the longer one, is covered too.
FACTORS = np.linspace(1.15, 0.6, 20).astype(np.float32)


@dataclass(frozen=True)
class BlockWeights:
    """A weight in 4 bits: element (r, c) is (code - zero point) * scale, with those of block c // `block` of row r."""

    codes: NDArray[np.uint8]  # (rows, columns), 0..15
    scales: NDArray[np.float16]  # (rows, blocks), of either sign, never 0
    zero_points: NDArray[np.uint8]  # (rows, blocks), 0..15; all 8 when symmetric
    block: int


def compress(
    weight: NDArray[np.floating[Any]],
    block: int = 64,
    symmetric: bool = True,
    clip: Clip = "none",
    importance: NDArray[np.floating[Any]] | None = None,
    positive: bool = False,
) -> BlockWeights:
    """`weight` rounded to the nearest of 16 levels a block: (rows, columns) -> codes of the same shape.

    The last block of a row may be short. Symmetric levels are -8..7 times a scale of either sign, so that -8 is the
    element of largest magnitude: for weights like a normal distribution the squared error is 1.28 times less than
    that of levels -7..7. With `positive` the scale is above 0, and -8 or 7 is one end of the block. Asymmetric levels
    cover a block's range and zero, as a zero point in 0..15 demands. Clip
    "none" covers the whole block; "mse" tries `FACTORS` of that scale and takes the least squared error, weighted by
    `importance` (columns,), the mean square of each input, where it is given. Scales are rounded to float16 before
    the codes are chosen; one that float16 cannot tell from zero becomes its smallest step.

    Raises ValueError if the weight is not a matrix of finite numbers in float16's range, for a block not in `BLOCKS`,
    an unknown clip, and an importance that is negative, not finite, or of another length.
    """
    weight = checked_weight(weight, block)
    rows, columns = weight.shape
    blocks = -(-columns // block)
    shares = np.zeros(blocks * block, np.float32)
    shares[:columns] = 1 if importance is None else checked_importance(importance, columns, "importance")
    packed = BlockWeights(
        np.empty((rows, columns), np.uint8),
        np.empty((rows, blocks), np.float16),
        np.empty((rows, blocks), np.uint8),
        block,
    )
    for part in row_parts(weight.shape):
        # Zeros fill the last block: they never widen a range, which holds zero anyway, and decode without error.
        padded = np.zeros((len(weight[part]), blocks * block), np.float32)
        padded[:, :columns] = weight[part]
        values = padded.reshape(-1, blocks, block)
        scales, zero_points = fit(values, shares.reshape(blocks, block), symmetric, clip, positive)
        codes = nearest_codes(values, scales[..., None], zero_points[..., None])
        packed.codes[part] = codes.reshape(padded.shape)[:, :columns]
        packed.scales[part] = scales
        packed.zero_points[part] = zero_points
    return packed


def decompress(packed: BlockWeights) -> NDArray[np.float32]:
    """The weight that an engine computes with: (code - zero point) * scale in float32, (rows, columns)."""
    columns = packed.codes.shape[1]
    weight = np.empty(packed.codes.shape, np.float32)
    for part in row_parts(weight.shape):
        scales = np.repeat(packed.scales[part], packed.block, axis=1)[:, :columns]
        zero_points = np.repeat(packed.zero_points[part], packed.block, axis=1)[:, :columns]
        weight[part] = decode(packed.codes[part], scales, zero_points)
    return weight


def fit(
    values: NDArray[np.float32], importance: NDArray[np.float32], symmetric: bool, clip: Clip, positive: bool = False
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """The scale and the zero point for each run along the last axis: (..., n) -> (...), (...).

    `importance` broadcasts against `values`; `compress` says what the choices mean. Raises ValueError for an
    unknown clip.
    """
    if clip not in ("none", "mse"):
        raise ValueError(f"clip must be 'none' or 'mse', got {clip!r}")
    low, high = values.min(axis=-1), values.max(axis=-1)
    if symmetric:
        step = np.where(high > -low, high, low) / np.float32(-8)
        if positive:
            step = np.maximum(high / np.float32(7), low / np.float32(-8))
        scales = _stored(step)
        zero_points = np.full(step.shape, 8, np.uint8)
    else:
        low = np.minimum(low, 0)
        step = (np.maximum(high, 0) - low) / np.float32(15)
        scales = _stored(step)
        zero_points = np.clip(np.rint(-low / scales.astype(np.float32)), 0, 15).astype(np.uint8)
    if clip == "mse":
        scratch = np.empty((2, *values.shape), np.float32)
        least = _squared_error(values, importance, scales, zero_points, scratch)
        for factor in FACTORS:
            candidates = _stored(step * factor)
            error = _squared_error(values, importance, candidates, zero_points, scratch)
            scales = np.where(error < least, candidates, scales)
            least = np.minimum(error, least)
    return scales, zero_points


def nearest_codes(values: NDArray[np.float32], scales: Scales, zero_points: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes 0..15 whose levels are nearest to `values`; scales and zero points broadcast against them."""
    codes = values / scales.astype(np.float32, copy=False)
    np.rint(codes, out=codes)
    codes += zero_points
    return np.clip(codes, 0, 15, out=codes).astype(np.uint8)


def decode(codes: NDArray[np.uint8], scales: Scales, zero_points: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The levels of `codes`, in float32; scales and zero points broadcast against them."""
    return (codes.astype(np.float32) - zero_points) * scales.astype(np.float32, copy=False)


def checked_weight(weight: NDArray[np.floating[Any]], block: int) -> NDArray[np.float32]:
    """`weight` as float32; ValueError if `compress` cannot take it, or cannot take `block`."""
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {BLOCKS}, got {block}")
    if weight.ndim != 2 or weight.size == 0:
        raise ValueError(f"a weight must be a matrix, (rows, columns), with elements in it; got shape {weight.shape}")
    peak = max(weight.max(), -weight.min())
    if not np.isfinite(peak):
        raise ValueError("the weight has NaN or infinity in it")
    if peak > FLOAT16_MAX:
        raise ValueError(f"the weight has {peak:g} in it, beyond the range of float16, which is {FLOAT16_MAX:g}")
    return weight.astype(np.float32, copy=False)


def checked_importance(importance: NDArray[np.floating[Any]], columns: int, name: str) -> NDArray[np.float32]:
    """`importance` as shares of its largest, so that none overflows; ValueError that says `name` if it is invalid."""
    if importance.shape != (columns,):
        raise ValueError(f"{name} must have one number a column, ({columns},), got shape {importance.shape}")
    if not (np.isfinite(importance).all() and importance.min() >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {importance.min()} to {importance.max()}")
    return (importance / (importance.max() or 1)).astype(np.float32)


def row_parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cut a matrix of `shape` into runs of rows of about `ELEMENTS_AT_ONCE` elements."""
    rows, columns = shape
    step = max(1, ELEMENTS_AT_ONCE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _stored(step: NDArray[np.float32]) -> NDArray[np.float16]:
    """`step` in float16 and never 0: a block of zeros decodes to zeros at any scale, and nothing divides by 0."""
    magnitude = np.clip(np.abs(step), FLOAT16_TINY, FLOAT16_MAX)
    return np.where(step < 0, -magnitude, magnitude).astype(np.float16)


def _squared_error(
    values: NDArray[np.float32],
    importance: NDArray[np.float32],
    scales: NDArray[np.float16],
    zero_points: NDArray[np.uint8],
    scratch: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The error of the nearest codes, in few passes over `scratch`, (2, ..., n): fresh memory would take longest."""
    step, zero = scales.astype(np.float32), zero_points[..., None].astype(np.float32)
    steps, error = scratch
    np.divide(values, step[..., None], out=steps)
    np.rint(steps, out=error)
    np.maximum(error, -zero, out=error)
    np.minimum(error, 15 - zero, out=error)
    error -= steps
    np.multiply(error, importance, out=steps)
    total: NDArray[np.float32] = np.einsum("...i,...i->...", error, steps) * np.square(step)
    return total
