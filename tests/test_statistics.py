"""Statistics of activations, gathered piece by piece, and the ranges chosen from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from outzoom.compress.activations import asymmetric_codes, symmetric_codes
from outzoom.compress.ranges import choose_range, expected_squared_error
from outzoom.compress.statistics import BINS, TensorStatistics, even_choice


def statistics_of(*pieces, channel_axis=-1):
    found = TensorStatistics.empty(pieces[0].shape[channel_axis])
    for piece in pieces:
        found.add(np.asarray(piece, np.float32), channel_axis)
    return found


def test_extremes_counts_and_second_moments_by_hand():
    found = statistics_of(np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([[-1.0, 0.0]]))
    assert (found.low, found.high) == (-2.0, 3.0)
    assert found.range == 4.0  # the power of two that reaches 3
    assert found.counts.sum() == 6
    assert found.rms == pytest.approx(np.sqrt([(1 + 9 + 1) / 3, (4 + 0 + 0) / 3]))


def test_the_second_moments_are_of_the_channels_of_a_picture():
    picture = np.zeros((1, 2, 3, 3), np.float32)
    picture[0, 1] = 2
    assert statistics_of(picture, channel_axis=1).rms.tolist() == [0, 2]


@pytest.mark.parametrize(("shape", "channel_axis"), [((1, 3, 40, 50), 1), ((2, 2000, 3), -1), ((2, 4, 500, 3), -1)])
def test_of_a_large_array_a_choice_counts_but_for_the_extremes(monkeypatch, shape, channel_axis):
    monkeypatch.setattr("outzoom.compress.statistics.MOST_VALUES", 3000)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values.flat[7] = 5
    found = statistics_of(values, channel_axis=channel_axis)
    assert found.high == 5
    assert 0.9 * 3000 < found.counts.sum() <= 3000
    assert found.rows * 3 == found.counts.sum()
    assert found.rms == pytest.approx(np.ones(3), abs=0.1)  # four standard errors of 1000 values are 0.09


@pytest.mark.parametrize(("count", "most", "chosen"), [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (4, 0, [0])])
def test_an_even_choice_by_hand(count, most, chosen):
    assert even_choice(count, most).tolist() == chosen


def test_peaks_are_the_largest_magnitudes_of_each_channel_by_hand():
    found = statistics_of(np.array([[1.0, -2.0, 0.5]]), np.array([[-3.0, 1.0, 0.25]]))
    assert found.peaks.tolist() == [3, 2, 0.5]
    picture = np.zeros((2, 2, 3, 3), np.float32)
    picture[1, 1, 2, 0] = -4
    assert statistics_of(picture, channel_axis=1).peaks.tolist() == [0, 4]


def test_growing_ranges_lose_no_value():
    """Whatever comes first, the counts are those of one histogram over the final range."""
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal((50, 4)) * scale for scale in (1e-3, 1, 0.1, 300)]
    together = np.concatenate(pieces).astype(np.float32)
    for order in (pieces, pieces[::-1]):
        found = statistics_of(*order)
        assert found.counts.sum() == together.size
        expected = np.histogram(together, BINS, (-found.range, found.range))[0]
        # values within float32's rounding of an edge may fall to either side of it, as bins are joined
        assert abs(found.counts - expected).sum() <= 4


def test_statistics_survive_a_file():
    found = statistics_of(np.random.default_rng(0).standard_normal((5, 3)))
    again = TensorStatistics.of_arrays(found.arrays())
    assert (again.low, again.high, again.range, again.rows) == (found.low, found.high, found.range, found.rows)
    assert np.array_equal(again.counts, found.counts)
    assert np.array_equal(again.rms, found.rms)
    assert np.array_equal(again.peaks, found.peaks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        statistics_of(np.array([[1.0, bad]]))


def test_the_full_range_holds_every_value_and_zero():
    assert choose_range(statistics_of(np.array([[2.0, 5.0]])), "minmax") == (0.0, 5.0)
    assert choose_range(statistics_of(np.array([[-2.0, -5.0]])), "minmax") == (-5.0, 0.0)


def test_percentiles_leave_a_rare_outlier_outside():
    values = np.random.default_rng(0).uniform(-1, 1, (1000, 100))
    values[0, 0] = 50
    low, high = choose_range(statistics_of(values), "percentile")
    assert -1.0 <= low <= -0.95  # a bin of the histogram is 1/16 wide here
    assert 0.95 <= high <= 1.07


def rounded(values, ends):
    scale, zero_point = asymmetric_codes(ends)
    codes = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return (codes - zero_point) * scale


@pytest.mark.parametrize("seed", range(3))
def test_the_least_error_range_is_better_than_the_others_on_heavy_tails(seed):
    """Judged by rounding the values themselves, not by the histogram that it was chosen from."""
    values = np.random.default_rng(seed).standard_t(3, (1000, 64)).astype(np.float32)
    found = statistics_of(values)
    errors = {
        method: float(np.square(values - rounded(values, choose_range(found, method))).mean())
        for method in ("mse", "minmax", "percentile")
    }
    assert errors["mse"] < errors["minmax"]
    assert errors["mse"] < errors["percentile"]
    even = [float(np.square(values - rounded(values, (-end, end))).mean()) for end in np.linspace(5, 100, 96)]
    assert errors["mse"] < 1.02 * min(even)  # which needs to know the values


def test_the_expected_error_is_that_of_rounding():
    values = np.random.default_rng(4).standard_normal((2000, 64)).astype(np.float32)
    found = statistics_of(values)
    for ends in ((found.low, found.high), (-1.5, 2.0), (-3.0, 3.0)):
        measured = float(np.square(values - rounded(values, ends)).mean())
        # the histogram's bins are 1/256 wide; the zero point moves a range by up to half a step
        assert expected_squared_error(found, ends) == pytest.approx(measured, rel=0.05)


def symmetrically_rounded(values, ends):
    scale, _ = symmetric_codes(ends)
    return np.clip(np.rint(values / scale), -127, 127) * scale


def test_symmetric_ranges_by_hand():
    values = statistics_of(np.array([[2.0, 5.0, -3.0]]))
    assert choose_range(values, "minmax", symmetric=True) == (-5.0, 5.0)
    assert choose_range(statistics_of(np.array([[-7.0, 5.0]])), "minmax", symmetric=True) == (-7.0, 7.0)
    assert symmetric_codes((-5.0, 5.0)) == (np.float32(5 / 127), 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_least_error_symmetric_range_is_nearly_the_best_there_is(seed):
    values = np.random.default_rng(seed).standard_t(3, (1000, 64)).astype(np.float32) + np.float32(0.3)
    low, high = choose_range(statistics_of(values), "mse", symmetric=True)
    assert low == -high
    error = float(np.square(values - symmetrically_rounded(values, (low, high))).mean())
    ends = np.linspace(1, 1.01 * abs(values).max(), 200)
    best = min(float(np.square(values - symmetrically_rounded(values, (-end, end))).mean()) for end in ends)
    assert error < 1.02 * best  # which needs to know the values


def test_a_tensor_that_is_always_zero_has_a_range_and_a_scale():
    ends = choose_range(statistics_of(np.zeros((2, 2))), "mse")
    assert ends == (0.0, 0.0)
    scale, zero_point = asymmetric_codes(ends)
    assert scale > 0
    assert (0 - float(zero_point)) * scale == 0


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(-1000, 1000, width=32)),
    st.sampled_from(["minmax", "percentile", "mse"]),
)
def test_every_range_holds_zero_and_lies_within_the_values(values, method):
    low, high = choose_range(statistics_of(values), method)
    assert low <= 0 <= high
    assert low >= min(values.min(), 0)
    assert high <= max(values.max(), 0)
    low, high = choose_range(statistics_of(values), method, symmetric=True)
    assert 0 <= -low == high <= abs(values).max()


def test_zero_is_exact_in_every_range():
    for ends in ((-1.0, 2.0), (0.0, 3.0), (-7.0, 0.0), (-0.001, 1000.0)):
        scale, zero_point = asymmetric_codes(ends)
        assert (float(zero_point) - zero_point) * scale == 0
        assert 0 <= zero_point <= 255
        assert scale == pytest.approx((ends[1] - ends[0]) / 255)
