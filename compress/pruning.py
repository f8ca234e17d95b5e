"""Unstructured pruning: the weights that matter least become zero, wherever they lie, and only the others are stored.

A weight is a matrix (rows, columns): rows are output channels, columns are inputs. Its scores, of the same shape,
say how much each element matters; they are finite and not negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.bits import pack_bits, unpack_bits

_MANTISSA_BITS = 12  # of a score's 23
_DROPPED_BITS = 23 - _MANTISSA_BITS
_BINS = 255 << _MANTISSA_BITS  # one for each exponent of a finite float32 and each of these mantissas: 8 MB of counts
_CHUNK = 1 << 20  # scores counted at a time


def magnitude_scores(weight: NDArray[Any]) -> NDArray[np.float32]:
    """|w| of each weight: (rows, columns) -> (rows, columns).

    Raises ValueError if `weight` is no matrix or not finite.
    """
    check_matrix("the weight", weight)
    return np.abs(weight.astype(np.float32))


def wanda_scores(weight: NDArray[Any], activation_rms: NDArray[Any]) -> NDArray[np.float32]:
    """|w| times the size of the input that it meets: (rows, columns), (columns,) -> (rows, columns).

    `activation_rms` is the root mean square of each input over the calibration data. It stands for the norm of
    the source, which is larger by the same factor in every column, so the order is the same.

    Raises ValueError if the weight is no matrix or not finite, or if `activation_rms` has another shape than
    (columns,), is not finite or is negative.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", section 3,
    arXiv 2306.11695.
    """
    scores = magnitude_scores(weight)
    if activation_rms.shape != scores.shape[1:]:
        raise ValueError(f"activation_rms must have shape {scores.shape[1:]}, got {activation_rms.shape}")
    _check_scores("activation_rms", activation_rms)
    scores *= activation_rms.astype(np.float32)
    return scores


def prune(
    weight: NDArray[Any], scores: NDArray[Any], fraction: float, scope: Literal["layer", "row"] = "layer"
) -> NDArray[Any]:
    """A copy of `weight` in which exactly round(fraction * n) elements, those of the lowest scores, are zero.

    (rows, columns), (rows, columns) -> (rows, columns). n counts the whole matrix, or with scope "row" each row
    by itself, as Wanda does. Elements that are zero already come first; if they are more, they all stay zero. Of
    equal scores the later goes first.

    Raises ValueError if `fraction` is not in [0, 1), the scope is unknown, the shapes differ, or there are NaN,
    infinities or negative scores.
    """
    _check_pair(weight, scores)
    _check_fraction(fraction)
    if scope not in ("layer", "row"):
        raise ValueError(f"scope must be 'layer' or 'row', got {scope!r}")
    pruned = weight.copy()
    order = np.where(weight == 0, -1.0, scores)
    groups = (1, weight.size) if scope == "layer" else weight.shape
    for values, group in zip(pruned.reshape(groups), order.reshape(groups), strict=True):
        values[_lowest(group, round(fraction * group.size))] = 0
    return pruned


class ScoreHistogram:
    """Counts the scores of many weights, one weight at a time, to prune all of them by one threshold.

    Scores are counted by the leading bits of their float32 form, exponent and mantissa: bins as wide as
    1/4096 of the scores in them at most, from the smallest normal float32 to the largest.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, scores: NDArray[Any]) -> None:
        """Count the scores of one more weight, of any shape.

        Raises ValueError if a score is NaN, infinite or negative.
        """
        _check_scores("scores", scores)
        flat = scores.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            # abs makes a new array, and +0.0 of -0.0, whose bits are those of no bin
            bits = np.abs(flat[start : start + _CHUNK].astype(np.float32)).view(np.uint32)
            self._counts += np.bincount(bits >> _DROPPED_BITS, minlength=_BINS)

    def threshold(self, fraction: float) -> float:
        """The score such that `fraction` of all scores, as nearly as the bins can tell, are below it.

        Scores that are spread over more than a few bins are split to better than 0.1 % of them all. Equal scores
        stay together, so where many are equal, or 0, no threshold comes close.

        Raises ValueError if `fraction` is not in [0, 1) or nothing was added.
        """
        _check_fraction(fraction)
        total = int(self._counts.sum())
        if total == 0:
            raise ValueError("there is no threshold: no scores were added")
        below = np.concatenate([[0], np.cumsum(self._counts)])  # how many scores lie below each edge of the bins
        edge = np.abs(below - fraction * total).argmin()
        return float((edge.astype(np.uint32) << _DROPPED_BITS).view(np.float32))


def prune_below(weight: NDArray[Any], scores: NDArray[Any], threshold: float) -> NDArray[Any]:
    """A copy of `weight`, (rows, columns), with zeros where its scores, of the same shape, are below `threshold`.

    Raises ValueError if the shapes differ, or there are NaN, infinities or negative scores.
    """
    _check_pair(weight, scores)
    pruned = weight.copy()
    pruned[scores < threshold] = 0
    return pruned


@dataclass(frozen=True)
class PrunedWeights:
    """A pruned weight as it is stored: which elements are not zero, and what they are.

    `mask_bits` is (ceil(n / 8),) uint8, 1 for an element that is not zero, packed by `pack_bits` in row-major order.
    `values` is (nonzeros,) in the same order, of the weight's type. `shape` is the weight's.
    """

    mask_bits: NDArray[np.uint8]
    values: NDArray[Any]
    shape: tuple[int, ...]

    @property
    def size_bits(self) -> int:
        """Of the mask and the values together."""
        return 8 * (self.mask_bits.nbytes + self.values.nbytes)


def pack(weight: NDArray[Any]) -> PrunedWeights:
    """`weight`, (rows, columns), without its zeros: `unpack` gives it back exactly, but -0.0 as 0.0.

    Raises ValueError if `weight` is no matrix or not finite.
    """
    check_matrix("the weight", weight)
    kept = weight != 0
    return PrunedWeights(pack_bits(kept.reshape(-1).view(np.uint8), 1), weight[kept], weight.shape)


def unpack(packed: PrunedWeights) -> NDArray[Any]:
    """The weight that was packed, (rows, columns).

    Raises ValueError if the mask is too short for the shape, or marks another number of elements than there are
    values.
    """
    weight = np.zeros(packed.shape, packed.values.dtype)
    kept = unpack_bits(packed.mask_bits, 1, weight.size).view(np.bool_)
    if np.count_nonzero(kept) != packed.values.size:
        raise ValueError(f"the mask marks {np.count_nonzero(kept)} elements, but there are {packed.values.size} values")
    weight.reshape(-1)[kept] = packed.values
    return weight


def check_matrix(name: str, values: NDArray[Any]) -> None:
    """Raise ValueError, saying `name`, if `values` is not (rows, columns) or holds NaN or an infinity."""
    if values.ndim != 2:
        raise ValueError(f"{name} must be a matrix (rows, columns), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in it")


def _check_pair(weight: NDArray[Any], scores: NDArray[Any]) -> None:
    check_matrix("the weight", weight)
    _check_scores("scores", scores)
    if scores.shape != weight.shape:
        raise ValueError(f"scores must have the weight's shape {weight.shape}, got {scores.shape}")


def _check_scores(name: str, scores: NDArray[Any]) -> None:
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise ValueError(f"{name} must be finite and not negative, got NaN, infinity or a negative number in it")


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")


def _lowest(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """(n,) -> (n,), True for the `count` lowest scores; of equal ones for the later."""
    if count == 0:
        return np.zeros(scores.shape, np.bool_)
    highest = np.partition(scores, count - 1)[count - 1]
    lowest: NDArray[np.bool_] = scores < highest
    equal = np.flatnonzero(scores == highest)
    lowest[equal[np.count_nonzero(lowest) - count :]] = True
    return lowest
