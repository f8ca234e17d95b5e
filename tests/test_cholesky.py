"""The triangular factor: by hand, beside NumPy's, and of matrices that are hardly positive definite."""

import numpy as np
import pytest

from outzoom.compress.cholesky import BLOCK, upper_factor
from outzoom.compress.gptq import gptq


def covariance_of(columns, seed=0):
    x = np.random.default_rng(seed).standard_normal((2 * columns, columns))
    return x.T @ x / len(x)


def test_a_factor_by_hand():
    matrix = np.array([[5.0, 2.0], [2.0, 4.0]])
    assert np.array_equal(upper_factor(matrix), [[2, 1], [0, 2]])
    assert np.array_equal(matrix, [[2, 1], [0, 2]])  # in the matrix's place


@pytest.mark.parametrize("columns", [1, 2, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize(("kind", "digits"), [(np.float32, 2e-6), (np.float64, 2e-14)])
def test_the_factor_is_that_of_numpy_from_the_last_row_up(columns, kind, digits):
    covariance = covariance_of(columns) + 0.01 * np.eye(columns)
    expected = np.linalg.cholesky(covariance[::-1, ::-1])[::-1, ::-1]
    found = upper_factor(covariance.astype(kind))
    assert found.dtype == kind
    # Entries are below 2; float32 rounds each of the sums that one is made of.
    assert np.allclose(found, expected, rtol=0, atol=digits)


@pytest.mark.parametrize("columns", [2, BLOCK + 3])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(columns):
    matrix = covariance_of(columns)
    matrix[0, 0] = -1
    with pytest.raises(np.linalg.LinAlgError):
        upper_factor(matrix)


def test_gptq_takes_more_digits_where_float32_has_too_few():
    columns = 2 * BLOCK
    covariance = np.ones((columns, columns)) + 1e-9 * covariance_of(columns)  # nearly all inputs are one and the same
    with pytest.raises(np.linalg.LinAlgError):
        upper_factor(covariance.astype(np.float32))
    weight = np.random.default_rng(1).standard_normal((8, columns)).astype(np.float32)
    assert np.isfinite(gptq(weight, covariance, damping_fraction=1e-9).scales).all()
