"""The triangular factor of a covariance, by blocks: nearly all of it is matrix products.

LAPACK's own decomposition, as NumPy calls it, takes 1.6 s of a processor that does so many multiply-adds in 0.4 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 128  # columns at a time


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
