"""N:M sparsity: which weights stay, how SparseGPT makes up for the others, and what is stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from outzoom.compress.pruning import magnitude_scores, prune, wanda_scores
from outzoom.compress.sparsity import (
    SparseWeights,
    nm_mask,
    pack,
    sparsegpt,
    sparsegpt_unstructured,
    unpack,
)

patterns = st.integers(2, 16).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m)))
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40))


def floats(values):
    return np.array(values, np.float32)


def normal(*shape, seed=7):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def neighbours(columns, correlation=0.9):
    """The covariance of inputs that are more alike the nearer they are."""
    index = np.arange(columns)
    return correlation ** np.abs(index[:, None] - index)


def output_error(weight, changed, covariance):
    difference = weight.astype(np.float64) - changed
    return np.sum(difference @ covariance * difference)


def masked(weight, n, m):
    return np.where(nm_mask(magnitude_scores(weight), n, m), weight, 0)


# --- masks by hand


def test_two_of_four_keeps_the_two_highest_of_each_group():
    scores = floats([[1, 4, 2, 3, 9, 8, 7, 6], [0, 0, 5, 1, 2, 9, 9, 3]])
    assert nm_mask(scores, 2, 4).astype(int).tolist() == [[0, 1, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1, 1, 0]]


def test_of_equal_scores_the_earlier_stays():
    scores = floats([[3, 3, 3, 3], [1, 2, 2, 2], [0, 0, 0, 0]])
    assert nm_mask(scores, 2, 4).astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("n", "m", "columns", "kept"), [(2, 4, 5, 1), (2, 4, 6, 1), (2, 4, 7, 2), (1, 4, 7, 1), (3, 4, 2, 2), (2, 3, 1, 1)]
)
def test_a_short_last_group_keeps_its_share_rounded_up(n, m, columns, kept):
    mask = nm_mask(np.arange(1.0, columns + 1)[None], n, m)[0]
    last = mask[columns - columns % m :]
    assert last.sum() == kept
    assert last[-kept:].all()  # the scores rise


def test_other_patterns_keep_n_of_m():
    assert nm_mask(floats([[5, 1, 2, 4, 3]]), 3, 5).astype(int).tolist() == [[1, 0, 0, 1, 1]]
    assert nm_mask(np.arange(32.0)[None], 1, 16).nonzero()[1].tolist() == [15, 31]


# --- masks: parity and properties


def test_the_mask_is_that_of_torchs_own_sparsifier():
    import torch
    from torch.ao.pruning import WeightNormSparsifier

    weight = normal(24, 64)
    model = torch.nn.Sequential(torch.nn.Linear(64, 24, bias=False))
    model[0].weight.data = torch.from_numpy(weight.copy())
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    assert np.array_equal(masked(weight, 2, 4), model[0].weight.detach().numpy())


@given(shapes, patterns, st.data())
def test_the_mask_is_the_first_n_of_a_stable_sort(shape, pattern, data):
    n, m = pattern
    scores = data.draw(hnp.arrays(np.float32, shape, elements=st.integers(0, 4)))
    mask = nm_mask(scores, n, m)
    for start in range(0, shape[1], m):
        group = scores[:, start : start + m]
        kept = -(-n * group.shape[1] // m)
        expected = np.zeros(group.shape, bool)
        np.put_along_axis(expected, np.argsort(-group, axis=1, kind="stable")[:, :kept], True, axis=1)
        assert np.array_equal(mask[:, start : start + m], expected)


# --- SparseGPT


def test_the_kept_weight_takes_over_what_its_lost_neighbour_did():
    covariance = np.array([[1, 0.5], [0.5, 1]])
    # Column 0 goes if 1^2 / (4/3) < 2^2 / 1: then column 1 takes half of it
    assert sparsegpt(np.array([[1.0, 2.0]]), covariance, 1, 2, damping_fraction=0) == pytest.approx(
        np.array([[0, 2.5]]), abs=1e-12
    )
    # Column 1 goes if it is the lesser: what came before it can not change any more
    assert sparsegpt(np.array([[2.0, 1.0]]), covariance, 1, 2, damping_fraction=0) == pytest.approx(
        np.array([[2, 0]]), abs=1e-12
    )


def test_a_weight_that_others_can_stand_in_for_goes_before_a_smaller_one():
    covariance = np.array([[1, 0.9], [0.9, 1]])
    # 1.5^2 * (1 - 0.9^2) = 0.43 is less than 1^2
    pruned = sparsegpt(np.array([[1.5, 1.0]]), covariance, 1, 2, damping_fraction=0)
    assert pruned == pytest.approx(np.array([[0, 1 + 0.9 * 1.5]]), abs=1e-12)


def test_damping_is_a_fraction_of_the_mean_variance():
    covariance = np.array([[1, 1], [1, 3]])
    # The mean is 2, so 0.5 of it makes 1 of the first and 4 of the second
    pruned = sparsegpt(np.array([[1.0, 2.0]]), covariance, 1, 2, damping_fraction=0.5)
    assert pruned == pytest.approx(np.array([[0, 2 + 1 / 4]]), abs=1e-12)


def by_definition(weight, covariance, n, m):
    """SparseGPT as the optimal brain surgeon has it: the inverse of what is left, anew for each column."""
    columns = weight.shape[1]
    current, result = weight.astype(np.float64), np.empty(weight.shape)
    inverses = [np.linalg.inv(covariance[j:, j:]) for j in range(columns)]
    for j in range(columns):
        if j % m == 0:
            scores = [current[:, k] ** 2 / inverses[k][0, 0] for k in range(j, min(j + m, columns))]
            kept = nm_mask(np.stack(scores, 1), n, m)
        result[:, j] = np.where(kept[:, j % m], current[:, j], 0)
        change = (current[:, j] - result[:, j]) / inverses[j][0, 0]
        current[:, j:] -= np.outer(change, inverses[j][0])
    return result


@pytest.mark.parametrize(("n", "m", "columns"), [(2, 4, 200), (2, 5, 143), (1, 2, 9), (3, 7, 260), (2, 4, 129)])
def test_panels_give_what_one_column_at_a_time_gives(n, m, columns):
    rng = np.random.default_rng(11)
    inputs = rng.standard_normal((3 * columns, columns)) @ rng.standard_normal((columns, columns))
    covariance = inputs.T @ inputs / len(inputs)
    damped = covariance + 0.01 * np.trace(covariance) / columns * np.eye(columns)
    weight = rng.standard_normal((6, columns))
    pruned = sparsegpt(weight, covariance, n, m)
    expected = by_definition(weight, damped, n, m)
    assert np.array_equal(pruned == 0, expected == 0)
    # float64, times the condition of the covariance
    assert np.allclose(pruned, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("correlation", [0.8, 0.95])
def test_the_outputs_stay_much_nearer_than_by_masking(correlation):
    weight, covariance = normal(32, 300), neighbours(300, correlation)
    pruned = sparsegpt(weight, covariance, 2, 4)
    error = output_error(weight, pruned, covariance)
    assert output_error(weight, masked(weight, 2, 4), covariance) > 1.3 * error
    assert output_error(weight, np.where(pruned == 0, 0, weight), covariance) > 1.3 * error


def test_independent_inputs_leave_nothing_to_make_up_for():
    weight = normal(16, 150)
    assert np.array_equal(sparsegpt(weight, np.eye(150), 2, 4), masked(weight, 2, 4))


def test_independent_inputs_of_different_size_give_wandas_choice():
    weight = normal(16, 150)
    rms = np.random.default_rng(2).uniform(0.1, 3, 150)
    expected = np.where(nm_mask(wanda_scores(weight, rms), 2, 4), weight, 0)
    assert np.array_equal(sparsegpt(weight, np.diag(rms**2), 2, 4, damping_fraction=0), expected)


@given(st.integers(1, 40), patterns)
def test_every_group_keeps_at_most_its_share(columns, pattern):
    n, m = pattern
    pruned = sparsegpt(normal(3, columns), neighbours(columns), n, m)
    for start in range(0, columns, m):
        group = pruned[:, start : start + m]
        assert np.count_nonzero(group, axis=1).max() == -(-n * group.shape[1] // m)


def test_the_type_is_kept_and_the_inputs_are_not_touched():
    weight, covariance = normal(4, 12).astype(np.float16), neighbours(12)
    before = weight.copy(), covariance.copy()
    assert sparsegpt(weight, covariance, 2, 4).dtype == np.float16
    assert sparsegpt_unstructured(weight, covariance, 0.5).dtype == np.float16
    assert np.array_equal(weight, before[0])
    assert np.array_equal(covariance, before[1])


def test_weights_of_inputs_that_are_always_zero_go_first():
    weight, covariance = 1 + np.abs(normal(4, 8)), neighbours(8)
    dead = [0, 3, 5, 6]
    covariance[dead], covariance[:, dead] = 0, 0
    pruned = sparsegpt(weight, covariance, 2, 4)
    assert np.array_equal(pruned == 0, np.broadcast_to(covariance.diagonal() == 0, pruned.shape))
    assert np.array_equal(pruned[pruned != 0], weight[pruned != 0])  # nothing that counts was lost


def test_inputs_that_are_all_zero_leave_the_magnitudes_to_decide():
    weight = normal(4, 10)
    assert np.array_equal(sparsegpt(weight, np.zeros((10, 10)), 2, 4), masked(weight, 2, 4))


def test_a_single_calibration_input_is_enough():
    weight, x = normal(8, 160), normal(160, seed=8).astype(np.float64)
    covariance = np.outer(x, x)
    pruned = sparsegpt(weight, covariance, 2, 4)
    assert np.isfinite(pruned).all()
    assert output_error(weight, masked(weight, 2, 4), covariance) > 1.3 * output_error(weight, pruned, covariance)


def test_a_singular_covariance_without_damping_is_refused():
    with pytest.raises(ValueError, match="not positive definite with damping_fraction 0; try a larger one"):
        sparsegpt(normal(2, 4), np.ones((4, 4)), 2, 4, damping_fraction=0)


def test_constant_and_zero_weights_are_pruned():
    weight = np.stack([np.zeros(8), np.full(8, 3.0)])
    pruned = sparsegpt(weight, neighbours(8), 2, 4)
    assert not pruned[0].any()
    assert np.count_nonzero(pruned[1]) == 4


# --- SparseGPT, unstructured


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.9])
def test_each_panel_has_the_fraction_of_zeros(fraction):
    pruned = sparsegpt_unstructured(normal(10, 300), neighbours(300), fraction)
    zeros = [np.count_nonzero(pruned[:, start : start + 128] == 0) for start in (0, 128, 256)]
    assert zeros == [round(fraction * 1280), round(fraction * 1280), round(fraction * 440)]


def test_independent_inputs_give_each_panel_its_lowest_magnitudes():
    weight = normal(16, 200)
    panels = [prune(panel, magnitude_scores(panel), 0.6) for panel in np.split(weight, [128], axis=1)]
    assert np.array_equal(sparsegpt_unstructured(weight, np.eye(200), 0.6), np.concatenate(panels, axis=1))


def test_unstructured_outputs_stay_much_nearer_than_by_pruning():
    weight, covariance = normal(32, 300), neighbours(300)
    error = output_error(weight, sparsegpt_unstructured(weight, covariance, 0.5), covariance)
    assert output_error(weight, prune(weight, magnitude_scores(weight), 0.5), covariance) > 1.3 * error
    assert output_error(weight, sparsegpt(weight, covariance, 2, 4), covariance) > error  # the freer pattern is better


# --- storage


def test_a_group_is_stored_as_its_values_and_their_positions():
    packed = pack(np.array([[0, 5, 0, 7, 0, 0, 3, 0]], np.int8), 2, 4)
    assert packed.values.tolist() == [[5, 7, 0, 3]]
    assert packed.values.dtype == np.int8
    assert packed.indices.tolist() == [0b10_00_11_01]
    assert packed.size_bits == 4 * 8 + 4 * 2


def test_a_short_last_group_is_stored_like_a_full_one():
    packed = pack(floats([[0, 5, 0, 7, 0, 3]]), 2, 4)
    assert packed.values.tolist() == [[5, 7, 0, 3]]
    assert packed.indices.tolist() == [0b01_00_11_01]
    assert packed.shape == (1, 6)


@pytest.mark.parametrize(("dtype", "fraction"), [(np.float16, 0.5625), (np.int8, 0.625), (np.float32, 0.53125)])
def test_two_of_four_has_the_size_of_half_the_values_and_two_bits_for_each(dtype, fraction):
    weight = masked(np.arange(1, 129).reshape(2, 64), 2, 4).astype(dtype)
    assert pack(weight, 2, 4).size_bits == fraction * 8 * weight.nbytes


@pytest.mark.parametrize(("m", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)])
def test_positions_take_as_few_bits_as_m_needs(m, bits):
    assert pack(np.zeros((8, m), np.float32), 1, m).indices.size == bits


@given(shapes, patterns, st.data())
def test_packing_is_exact_in_every_type(shape, pattern, data):
    n, m = pattern
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.int8]))
    weight = data.draw(hnp.arrays(dtype, shape, elements=st.integers(-3, 3)))
    weight[~nm_mask(magnitude_scores(weight), n, m)] = 0
    back = unpack(pack(weight, n, m))
    assert (back.dtype, back.shape) == (dtype, shape)
    assert np.array_equal(back, weight)


def test_the_stored_values_are_those_of_torchs_semi_structured_format():
    import torch
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    weight = masked(normal(32, 64), 2, 4).astype(np.float16)
    values, _ = sparse_semi_structured_from_dense_cutlass(torch.from_numpy(weight))
    assert np.array_equal(pack(weight, 2, 4).values, values.numpy())


def test_a_group_with_too_many_values_is_refused_and_named():
    weight = np.zeros((3, 10), np.float32)
    weight[1, 4:7] = 1
    with pytest.raises(ValueError, match="4 columns may hold 2 non-zeros, got 3 in row 1, columns from 4 on"):
        pack(weight, 2, 4)


def test_a_position_outside_the_group_is_refused():
    packed = SparseWeights(np.ones((1, 1), np.float32), np.array([3], np.uint8), (1, 3), 1, 3)
    with pytest.raises(ValueError, match="in a group of 3 must be below 3, got 3"):
        unpack(packed)


def test_too_few_values_or_positions_are_refused():
    packed = pack(masked(normal(4, 8), 2, 4), 2, 4)
    with pytest.raises(ValueError, match="reshape"):
        unpack(SparseWeights(packed.values[:, 1:], packed.indices, packed.shape, 2, 4))
    with pytest.raises(ValueError, match="3 bytes hold 12 values"):
        unpack(SparseWeights(packed.values, packed.indices[1:], packed.shape, 2, 4))


# --- what is refused, and what is not


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4), (2, 17), (0, 1), (1, 0)])
def test_other_patterns_are_refused(n, m):
    for use in (nm_mask, pack, lambda weight, n, m: sparsegpt(weight, np.eye(4), n, m)):
        with pytest.raises(ValueError, match=f"1 <= n < m <= 16, got {n}:{m}"):
            use(np.zeros((2, 4)), n, m)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "use",
    [
        lambda weight: nm_mask(weight, 1, 2),
        lambda weight: pack(weight, 1, 2),
        lambda weight: sparsegpt(weight, np.eye(2), 1, 2),
        lambda weight: sparsegpt(np.ones((2, 2)), weight, 1, 2),
        lambda weight: sparsegpt_unstructured(weight, np.eye(2), 0.5),
    ],
)
def test_nan_and_infinity_are_refused(use, bad):
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
        use(floats([[0, 2], [bad, 0]]))


def test_integer_weights_cannot_be_updated():
    with pytest.raises(ValueError, match="must be floats, got int8"):
        sparsegpt(np.ones((2, 4), np.int8), np.eye(4), 2, 4)


def test_a_covariance_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\), got \(3, 3\)"):
        sparsegpt(normal(2, 4), np.eye(3), 2, 4)


@pytest.mark.parametrize("damping_fraction", [-0.1, np.nan])
def test_negative_damping_is_refused(damping_fraction):
    with pytest.raises(ValueError, match="damping_fraction must not be negative"):
        sparsegpt(normal(2, 4), np.eye(4), 2, 4, damping_fraction)


def test_a_fraction_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\), got 1"):
        sparsegpt_unstructured(normal(2, 4), np.eye(4), 1)


def test_an_empty_weight_is_masked_and_stored_as_such():
    empty = np.zeros((0, 6), np.float32)
    assert nm_mask(empty, 2, 4).shape == (0, 6)
    assert unpack(pack(empty, 2, 4)).shape == (0, 6)
