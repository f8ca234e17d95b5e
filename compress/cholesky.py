"""The triangular factor of a covariance, by blocks: nearly all of it is matrix products.

LAPACK's own decomposition, as NumPy calls it, takes several times as long as so many multiply-adds do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 128  # columns at a time


def damped_factor(
    covariance: NDArray[Any], scale: float, diagonal: NDArray[np.float64], kind: np.dtype[Any]
) -> NDArray[Any]:
    """`upper_factor` of a covariance over `scale` with another diagonal, in `kind`; the covariance stays as it is.

    It is computed in float64 where `kind` has too few digits. Raises numpy.linalg.LinAlgError if those don't do either.
    """
    try:
        return upper_factor(_over(covariance, scale, diagonal, kind))
    except np.linalg.LinAlgError:
        return upper_factor(_over(covariance, scale, diagonal, np.dtype(np.float64))).astype(kind, copy=False)


def _over(covariance: NDArray[Any], scale: float, diagonal: NDArray[np.float64], kind: np.dtype[Any]) -> NDArray[Any]:
    found: NDArray[Any] = np.divide(covariance, scale, dtype=kind, casting="same_kind")
    np.fill_diagonal(found, diagonal)
    return found


def upper_factor(matrix: NDArray[Any]) -> NDArray[Any]:
    """R, upper triangular, with R R^T = `matrix`, (n, n), in whose place it is returned.

    Blocks along the diagonal are decomposed in float64, all else is computed in the matrix's type. Raises
    numpy.linalg.LinAlgError if the matrix is not positive definite, or too nearly not so for its type.

    Source: Golub & Van Loan, "Matrix Computations", 4.2.9 (block Cholesky), from the last row up.
    """
    for start in reversed(range(0, len(matrix), BLOCK)):
        run, later = slice(start, start + BLOCK), slice(start + BLOCK, None)
        done = matrix[run, later]
        corner = (matrix[run, run] - done @ done.T).astype(np.float64)
        corner = np.linalg.cholesky(corner[::-1, ::-1])[::-1, ::-1]
        above = matrix[:start, run] - matrix[:start, later] @ done.T
        np.matmul(above, np.linalg.inv(corner).T.astype(matrix.dtype), out=matrix[:start, run])
        matrix[run, run] = corner
        matrix[later, run] = 0
    return matrix
