"""Activation-aware scaling: a row worked out by hand, the search done slowly, and what it is for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outzoom.compress.awq import awq_scales
from outzoom.compress.int4 import ELEMENTS_AT_ONCE, compress, decompress


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def some_rms(columns, seed=1, spread=1.5):
    """Most inputs are alike, a few are many times as strong."""
    return np.exp(spread * normal(columns, seed=seed)).astype(np.float64)


def scaled_weight(weight, scales, block=64, symmetric=True):
    """The weight that the inputs meet after both scalings."""
    return decompress(compress(weight * scales, block, symmetric)).astype(np.float64) / scales


def weighted_error(weight, scales, rms, block=64, symmetric=True):
    return float(((scaled_weight(weight, scales, block, symmetric) - weight) ** 2 * rms**2).sum())


def test_a_strong_input_gets_finer_levels():
    weight, rms = np.array([[-8.0, 0.4]]), np.array([1.0, 100.0])
    # Alpha 0: a step of 1, 0.4 becomes 0, the error is (0.4 * 100)^2 = 1600.
    # Alpha 1: s is rms / sqrt(1 * 100), the scaled weight (-0.8, 4), a step of 0.5. It becomes (-1, 4), that is
    # (-10, 0.4) after the division, and the error 2^2.
    scales = awq_scales(weight, rms, grid=1)
    assert scales == pytest.approx([0.1, 10.0], rel=1e-6)
    assert weighted_error(weight, np.ones(2), rms) == pytest.approx(1600, rel=1e-6)
    assert weighted_error(weight, scales, rms) == pytest.approx(4, rel=1e-5)


def test_the_power_is_searched_in_steps_of_the_grid():
    weight, rms = np.array([[-8.0, 0.5]]), np.array([1.0, 16.0])
    # Alpha 0: a step of 1, 0.5 becomes 0. Alpha 1: s = (1/4, 4) makes (-2, 2), and 2 is cut off at 7 of 8 steps.
    # Alpha 1/2: s = (1/2, 2) makes (-4, 1), 8 and 2 steps of 0.5: no error.
    assert awq_scales(weight, rms, grid=2) == pytest.approx([0.5, 2.0], rel=1e-6)
    assert awq_scales(weight, rms, grid=1) == pytest.approx([0.25, 4.0], rel=1e-6)


def test_nothing_is_scaled_where_plain_rounding_has_no_error():
    assert awq_scales(np.array([[-8.0, 4.0]]), np.array([1.0, 16.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [32, 128])
def test_the_best_of_all_powers_is_found(block, symmetric):
    weight, rms = normal(24, 200), some_rms(200)
    powers = [rms ** (step / 20) for step in range(21)]
    candidates = [(power / (power.max() * power.min()) ** 0.5).astype(np.float32) for power in powers]
    errors = [weighted_error(weight, scales, rms, block, symmetric) for scales in candidates]
    best = int(np.argmin(errors))
    assert 0 < best < 20  # neither end, so that the search matters
    assert awq_scales(weight, rms, block, symmetric) == pytest.approx(candidates[best], rel=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.integers(1, 100),
    spread=st.floats(0, 8),
    symmetric=st.booleans(),
    grid=st.integers(1, 5),
)
def test_scaling_is_never_worse_than_plain_rounding(seed, columns, spread, symmetric, grid):
    weight, rms = normal(3, columns, seed=seed), some_rms(columns, seed + 1, spread)
    scales = awq_scales(weight, rms, 32, symmetric, grid)
    plain = weighted_error(weight, np.ones(columns, np.float32), rms, 32, symmetric)
    assert weighted_error(weight, scales, rms, 32, symmetric) <= plain * (1 + 1e-5)  # squares in float32 in the search


def test_outputs_are_clearly_closer_on_inputs_of_unlike_strength():
    weight, rms = normal(64, 256), some_rms(256)
    x = normal(500, 256, seed=2) * rms
    scales = awq_scales(weight, rms)
    exact = x @ weight.T.astype(np.float64)
    scaled = (x / scales) @ decompress(compress(weight * scales)).T
    plain = x @ decompress(compress(weight)).T
    assert ((scaled - exact) ** 2).sum() * 1.5 < ((plain - exact) ** 2).sum()


def test_channels_that_never_fired_keep_factor_1_and_do_not_shift_the_others():
    weight, rms = normal(8, 64), some_rms(64)
    weight[:, [3, 40]] = 0  # of no influence on the scales of blocks
    alone = awq_scales(np.delete(weight, [3, 40], axis=1), np.delete(rms, [3, 40]))
    rms[[3, 40]] = 0
    scales = awq_scales(weight, rms)
    assert scales[[3, 40]].tolist() == [1.0, 1.0]
    assert np.array_equal(np.delete(scales, [3, 40]), alone)
    assert not np.array_equal(alone, np.ones(62))


def test_channels_that_never_fired_at_all_keep_factor_1():
    assert np.array_equal(awq_scales(normal(3, 20), np.zeros(20)), np.ones(20))


def test_channels_of_equal_strength_keep_factor_1():
    assert awq_scales(normal(3, 20), np.full(20, 7.0)).tolist() == [1.0] * 20


def test_a_factor_that_leaves_float16s_range_is_not_taken():
    weight, rms = np.array([[-8.0, 0.4]]), np.array([1.0, 100.0])
    assert awq_scales(weight * 2**10, rms, grid=1) == pytest.approx([0.1, 10.0], rel=1e-6)
    assert awq_scales(np.vstack([weight, [0.0, 6551.0]]), rms, grid=1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rms", [[1e-30, 1e30], [1e-300, 1e300], [5e-324, 1.7e308]])
def test_factors_stay_in_float16s_range(rms):
    scales = awq_scales(np.array([[-8.0, 0.4]]), np.array(rms), grid=1)
    assert scales == pytest.approx([np.exp(-10), np.exp(10)], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_unit_of_the_inputs_does_not_matter(factor):
    weight, rms = normal(8, 64), some_rms(64)
    assert awq_scales(weight, factor * rms) == pytest.approx(awq_scales(weight, rms), rel=1e-6)


def test_every_row_counts():
    rows = 2 * ELEMENTS_AT_ONCE // 64 + 5  # three runs, the last one short
    rms = np.array([1.0] + [100.0] * 63)
    for row in (0, rows // 2, rows - 1):
        weight = np.zeros((rows, 64))
        assert np.array_equal(awq_scales(weight, rms, grid=1), np.ones(64))
        weight[row] = [-8.0] + [0.4] * 63
        assert awq_scales(weight, rms, grid=1)[:2] == pytest.approx([0.1, 10.0], rel=1e-6)


def test_the_weight_and_the_strengths_are_not_touched():
    weight, rms = normal(4, 40), some_rms(40)
    before = weight.copy(), rms.copy()
    awq_scales(weight, rms)
    assert np.array_equal(weight, before[0])
    assert np.array_equal(rms, before[1])


def test_the_result_is_float32_one_factor_a_column():
    scales = awq_scales(normal(4, 40), some_rms(40))
    assert (scales.dtype, scales.shape) == (np.float32, (40,))


def test_zeros_keep_factor_1():
    assert np.array_equal(awq_scales(np.zeros((3, 20)), some_rms(20)), np.ones(20))


@pytest.mark.parametrize(
    ("rms", "message"),
    [([1, 1], r"activation_rms must have one number a column, \(3,\), got shape \(2,\)"),
     ([1, -1, 1], "activation_rms must be finite and not negative"),
     ([1, np.nan, 1], "activation_rms must be finite"),
     ([1, np.inf, 1], "activation_rms must be finite")],
)  # fmt: skip
def test_strengths_that_are_not_root_mean_squares_are_refused(rms, message):
    with pytest.raises(ValueError, match=message):
        awq_scales(normal(2, 3), np.array(rms))


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        awq_scales(normal(2, 3), np.ones(3), grid=0)


def test_what_compress_refuses_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        awq_scales(np.full((2, 2), np.nan), np.ones(2))
    with pytest.raises(ValueError, match="block must be one of"):
        awq_scales(normal(2, 2), np.ones(2), block=8)
