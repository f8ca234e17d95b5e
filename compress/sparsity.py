"""N:M sparsity: of every m consecutive inputs an output uses n at most, as hardware with 2:4 support wants it.

A weight is a matrix (rows, columns): rows are output channels, columns are inputs; a group is m consecutive columns
of one row. Where m does not divide the columns, the last group of a row is short: of its c columns it keeps
ceil(n * c / m).

Source of the pattern and its storage: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.bits import pack_bits, unpack_bits
from .cholesky import damped_factor
from .pruning import check_matrix, prune

_MAX_M = 16
_PANEL_COLUMNS = 128


def nm_mask(scores: NDArray[Any], n: int, m: int) -> NDArray[np.bool_]:
    """True for the n highest of every m consecutive scores of a row: (rows, columns) -> (rows, columns).

    Exactly n of each full group are True: of equal scores the earlier wins.

    Raises ValueError unless 1 <= n < m <= 16 and `scores` is a finite matrix.
    """
    _check_pattern(n, m)
    check_matrix("scores", scores)
    rows, columns = scores.shape
    whole, short = columns - columns % m, columns % m
    mask = np.empty(scores.shape, np.bool_)
    mask[:, :whole] = _highest(scores[:, :whole].reshape(-1, m), n).reshape(rows, whole)
    mask[:, whole:] = _highest(scores[:, whole:], -(-n * short // m))
    return mask


def sparsegpt(
    weight: NDArray[Any], covariance: NDArray[Any], n: int, m: int, damping_fraction: float = 0.01
) -> NDArray[Any]:
    """`weight` with n of every m columns of a row kept, and the kept ones changed to make up for the lost ones.

    (rows, columns), (columns, columns) -> (rows, columns) of the weight's type. `covariance` is the mean of x x^T
    over inputs x of calibration. The result is close to the least tr((W - Q) C (W - Q)^T) over Q of the pattern.
    `damping_fraction` of the mean of the covariance's diagonal is added to that diagonal, so inputs that are
    always zero and covariances without full rank are fine. Next to its arguments this takes memory for three
    float64 matrices like `covariance` and two like `weight`.

    Raises ValueError unless 1 <= n < m <= 16, the weight is a finite matrix of floats and the covariance a finite
    matrix that fits it, positive definite once damped.

    Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    section 3, arXiv 2301.00774.
    """
    _check_pattern(n, m)
    return _prune_and_update(weight, covariance, damping_fraction, m, lambda scores: nm_mask(scores, n, m))


def sparsegpt_unstructured(
    weight: NDArray[Any], covariance: NDArray[Any], fraction: float, damping_fraction: float = 0.01
) -> NDArray[Any]:
    """As `sparsegpt`, but with `fraction` of the elements zero, chosen freely within each panel of 128 columns.

    (rows, columns), (columns, columns) -> (rows, columns) of the weight's type; a panel of k elements has
    round(fraction * k) zeros.

    Raises ValueError if `fraction` is not in [0, 1), and as `sparsegpt` does.
    """
    return _prune_and_update(
        weight, covariance, damping_fraction, _PANEL_COLUMNS, lambda scores: prune(scores, scores, fraction) != 0
    )


@dataclass(frozen=True)
class SparseWeights:
    """An N:M sparse weight as it is stored: n values of each group, and their positions in it.

    `values` is (rows, groups * n), of the weight's type; a group with fewer non-zeros is filled up with zeros.
    `indices` holds the position of each value in its group, ascending, in ceil(log2 m) bits, packed by `pack_bits`.
    `shape` is the weight's; a short last group is stored like a full one.
    """

    values: NDArray[Any]
    indices: NDArray[np.uint8]
    shape: tuple[int, int]
    n: int
    m: int

    @property
    def size_bits(self) -> int:
        """Of the values and the positions together."""
        return 8 * (self.values.nbytes + self.indices.nbytes)


def pack(weight: NDArray[Any], n: int, m: int) -> SparseWeights:
    """`weight`, (rows, columns), as n values of each group: `unpack` gives it back exactly, but -0.0 as 0.0.

    Raises ValueError if a group holds more than n non-zeros, unless 1 <= n < m <= 16, or if `weight` is no matrix
    or not finite.
    """
    _check_pattern(n, m)
    check_matrix("the weight", weight)
    rows, columns = weight.shape
    groups = np.pad(weight, ((0, 0), (0, -columns % m))).reshape(-1, m)
    nonzeros = np.count_nonzero(groups, axis=1)
    if nonzeros.size and nonzeros.max() > n:
        row, group = divmod(int(nonzeros.argmax()), -(-columns // m))
        raise ValueError(
            f"{m} columns may hold {n} non-zeros, got {nonzeros.max()} in row {row}, columns from {group * m} on"
        )
    stored = _highest(groups != 0, n)
    positions = np.broadcast_to(np.arange(m, dtype=np.uint8), groups.shape)[stored]
    values = groups[stored].reshape(rows, -(-columns // m) * n)
    return SparseWeights(values, pack_bits(positions, _index_bits(m)), (rows, columns), n, m)


def unpack(packed: SparseWeights) -> NDArray[Any]:
    """The weight that was packed, (rows, columns).

    Raises ValueError if there are too few values or positions for the shape, or a position is not below m.
    """
    rows, columns = packed.shape
    n, m = packed.n, packed.m
    groups = np.zeros((rows * -(-columns // m), m), packed.values.dtype)
    positions = unpack_bits(packed.indices, _index_bits(m), len(groups) * n).reshape(-1, n)
    if positions.size and positions.max() >= m:
        raise ValueError(f"positions in a group of {m} must be below {m}, got {positions.max()}")
    np.put_along_axis(groups, positions, packed.values.reshape(len(groups), n), axis=1)
    return groups.reshape(rows, -(-columns // m) * m)[:, :columns]


def _prune_and_update(
    weight: NDArray[Any],
    covariance: NDArray[Any],
    damping_fraction: float,
    block_columns: int,
    choose: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
) -> NDArray[Any]:
    """SparseGPT with the mask of `block_columns` columns at a time chosen by their scores.

    The paper's factor is U, upper triangular, with H^-1 = U^T U. Here it is R = U^-1, so H = R R^T: one Cholesky
    decomposition, of H turned upside down, and no inverse of H. Block by block along the diagonal U is the inverse of
    R. The scaled errors e that the paper subtracts from the columns to come are (W - Q) R, so what all earlier
    columns do to a panel is one product with R.
    """
    check_matrix("the weight", weight)
    check_matrix("the covariance", covariance)
    rows, columns = weight.shape
    if not np.issubdtype(weight.dtype, np.floating):
        raise ValueError(f"weights are changed, so they must be floats, got {weight.dtype}")
    if covariance.shape != (columns, columns):
        raise ValueError(f"the covariance must have shape {(columns, columns)}, got {covariance.shape}")
    kind = np.result_type(weight, np.float32)
    factor = _factor(covariance, damping_fraction, kind)
    result = np.empty_like(weight)
    lost = np.empty((rows, columns), kind)  # W - Q, of the columns done so far
    panel_columns = _PANEL_COLUMNS // block_columns * block_columns
    for start in range(0, columns, panel_columns):
        panel = slice(start, start + panel_columns)
        upper = np.linalg.inv(factor[panel, panel])
        current = np.ascontiguousarray((weight[:, panel] + lost[:, :start] @ factor[:start, panel] @ upper).T)
        for column, values in enumerate(current):
            if column % block_columns == 0:
                block = slice(column, column + block_columns)
                pruned = ~choose((current[block].T / upper.diagonal()[block]) ** 2).T
            error = np.where(pruned[column % block_columns], values / upper[column, column], 0)
            current[column + 1 :] -= np.outer(upper[column, column + 1 :], error)
            values[pruned[column % block_columns]] = 0
        result[:, panel] = current.T
        lost[:, panel] = weight[:, panel] - current.T
    return result


def _factor(covariance: NDArray[Any], damping_fraction: float, kind: np.dtype[Any]) -> NDArray[Any]:
    """R, upper triangular, with R R^T = H, the damped covariance, over the mean of its diagonal."""
    if not damping_fraction >= 0:
        raise ValueError(f"damping_fraction must not be negative, got {damping_fraction}")
    diagonal = covariance.diagonal().astype(np.float64)
    mean = diagonal.mean() or 1.0  # without any input all columns count the same
    try:
        return damped_factor(covariance, mean, diagonal / mean + damping_fraction, kind)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the covariance is not positive definite with damping_fraction {damping_fraction}; try a larger one"
        ) from None


def _highest(scores: NDArray[Any], n: int) -> NDArray[np.bool_]:
    """(groups, m) -> (groups, m), True for the n highest of each group; of equal ones for the earlier."""
    rank = np.zeros(scores.shape, np.uint8)
    for first, second in combinations(range(scores.shape[1]), 2):
        first_wins = scores[:, first] >= scores[:, second]
        rank[:, second] += first_wins
        rank[:, first] += ~first_wins
    return rank < n


def _check_pattern(n: int, m: int) -> None:
    if not 1 <= n < m <= _MAX_M:
        raise ValueError(f"n:m needs 1 <= n < m <= {_MAX_M}, got {n}:{m}")


def _index_bits(m: int) -> int:
    return (m - 1).bit_length()
