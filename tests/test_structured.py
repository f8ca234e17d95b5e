"""Structured pruning's numerics: what a unit's loss is, and least squares that makes up for what goes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outzoom.compress.structured import kept_units, narrowed, reconstruction, unit_channels, unit_losses

WEIGHT = np.array([[1.0, 2, 0, 1], [0, 1, 3, 1], [1, 0, 0, 1], [0, 0, 1, 2]], np.float32)
COVARIANCE = np.diag([4.0, 1, 0.5, 1]).astype(np.float32)


def test_the_loss_of_a_channel_is_its_mean_square_times_its_columns_squares():
    assert unit_losses(WEIGHT, COVARIANCE, 4).tolist() == [4 * 2, 1 * 5, 0.5 * 10, 1 * 7]


def test_the_loss_of_a_unit_counts_how_its_channels_go_together():
    covariance = COVARIANCE.copy()
    assert unit_losses(WEIGHT, covariance, 2).tolist() == [8 + 5, 5 + 7]
    covariance[0, 1] = covariance[1, 0] = -1
    # what the first two make of an input (1, -1): the rows give -1, -1, 1, 0; their products are 1*2 + 0*1 = 2
    assert unit_losses(WEIGHT, covariance, 2).tolist() == [13 - 2 * 2, 12]


def test_the_places_of_a_kernel_add_up():
    places = np.stack([WEIGHT, 2 * WEIGHT], axis=1)  # (rows, places, channels)
    assert unit_losses(places, COVARIANCE, 4).tolist() == [5 * 8, 5 * 5, 5 * 5, 5 * 7]


def test_the_units_of_the_lowest_losses_go_and_one_stays():
    losses = np.array([3.0, 1, 2, 4])
    assert kept_units(losses, 0.25).tolist() == [0, 2, 3]
    assert kept_units(losses, 0.6).tolist() == [0, 3]
    assert kept_units(losses, 0.24).tolist() == [0, 1, 2, 3]
    assert kept_units(losses, 0.999).tolist() == [3]
    assert kept_units(losses[3:], 0.5).tolist() == [0]


def test_a_fraction_that_is_a_whole_number_of_units_takes_them_all():
    assert len(kept_units(np.arange(100.0), 0.29)) == 71  # 100 * 0.29 is 28.999999999999996


def test_a_unit_is_a_run_of_channels():
    assert unit_channels(np.array([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_a_channel_that_repeats_others_is_made_up_for_wholly():
    """The fourth channel is the sum of the first and twice the second; all are kept but it."""
    mixing = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 2, 0]])
    covariance = mixing @ mixing.T
    kept = np.array([0, 1, 2])
    assert np.allclose(reconstruction(covariance, kept, 0), [[1, 2, 0]])
    # damping of 1% makes it give back a little less, which is all the difference
    assert np.allclose(narrowed(WEIGHT, kept, covariance), WEIGHT[:, :3] + WEIGHT[:, 3:] @ [[1, 2, 0]], atol=0.05)


def test_without_a_covariance_the_columns_are_taken_as_they_are():
    assert narrowed(WEIGHT, np.array([0, 2]), None).tolist() == [[1, 0], [0, 3], [1, 0], [0, 1]]


def test_channels_that_never_fired_are_left_out_of_what_makes_up():
    covariance = np.zeros((4, 4))
    assert narrowed(WEIGHT, np.array([0, 1]), covariance).tolist() == WEIGHT[:, :2].tolist()


@pytest.mark.parametrize("damping_fraction", [0.0, 0.3])
def test_reconstruction_is_numpys_least_squares(damping_fraction):
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8))
    kept, others = np.array([0, 2, 3, 6, 7]), [1, 4, 5]
    covariance = inputs.T @ inputs / len(inputs)
    ridge = np.sqrt(damping_fraction * covariance.diagonal()[kept].mean()) * np.eye(len(kept))
    equations = np.concatenate([inputs[:, kept] / np.sqrt(len(inputs)), ridge])
    wanted = np.concatenate([inputs[:, others] / np.sqrt(len(inputs)), np.zeros((len(kept), 3))])
    # of float64, over a covariance, which squares the condition number: here about a thousand
    assert np.allclose(
        reconstruction(covariance, kept, damping_fraction), np.linalg.lstsq(equations, wanted)[0].T, atol=1e-9
    )


@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 12), fraction=st.floats(0.1, 0.9))
def test_what_makes_up_is_never_worse_than_what_does_not(seed, rank, fraction):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, 12)).astype(np.float32)
    inputs = rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 12))
    covariance = inputs.T @ inputs / len(inputs)
    kept = kept_units(unit_losses(weight, covariance, 12), fraction)
    exact = inputs @ weight.T
    errors = [
        np.square(inputs[:, kept] @ narrowed(weight, kept, given).T - exact).mean() for given in (covariance, None)
    ]
    assert errors[0] <= errors[1] * (1 + 1e-5)  # float32 weights


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be \(4, 4\), got shape \(3, 3\)"):
        unit_losses(WEIGHT, COVARIANCE[:3, :3], 4)
    with pytest.raises(ValueError, match="4 channels do not divide into 3"):
        unit_losses(WEIGHT, COVARIANCE, 3)
    with pytest.raises(ValueError, match="covariance has NaN"):
        reconstruction(np.full((4, 4), np.nan), np.array([0]))
    with pytest.raises(ValueError, match="weight has NaN"):
        unit_losses(np.full((4, 4), np.inf), COVARIANCE, 4)
    with pytest.raises(ValueError, match="not positive definite"):
        reconstruction(-np.eye(4), np.array([0, 1]))
