"""Unstructured pruning: which weights go, exactly how many, over one layer and over all of them, and what is stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from outzoom.compress.pruning import (
    PrunedWeights,
    ScoreHistogram,
    magnitude_scores,
    pack,
    prune,
    prune_below,
    unpack,
    wanda_scores,
)

few_values = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])  # many ties, many zeros
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=few_values)
fractions = st.floats(0, 1, exclude_max=True)


def floats(values):
    return np.array(values, np.float32)


def normal(*shape, seed=5):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- by hand: scores


def test_the_magnitude_of_the_least_int8_is_128():
    scores = magnitude_scores(np.array([[-128, 127], [0, -1]], np.int8))
    assert scores.tolist() == [[128, 127], [0, 1]]


def test_wanda_weighs_each_column_by_its_input():
    scores = wanda_scores(floats([[1, -2], [3, 4]]), floats([10, 0.5]))
    assert scores.tolist() == [[10, 1], [30, 2]]


def test_scores_of_half_precision_are_single_precision():
    weight = np.array([[6e4, 3.0]], np.float16)
    assert magnitude_scores(weight).dtype == np.float32
    assert wanda_scores(weight, floats([10, 1]))[0, 0] == 10 * np.float32(weight[0, 0])  # beyond float16


# --- by hand: one layer


def test_a_layer_loses_its_lowest_scores_wherever_they_are():
    weight = floats([[1, -2, 3, 4], [-5, 6, 7, 8]])
    assert prune(weight, np.abs(weight), 0.5).tolist() == [[0, 0, 0, 0], [-5, 6, 7, 8]]


def test_each_row_loses_its_own_lowest_scores():
    weight = floats([[1, -2, 3, 4], [8, 7, -6, 5]])
    assert prune(weight, np.abs(weight), 0.5, scope="row").tolist() == [[0, 0, 3, 4], [8, 7, 0, 0]]


def test_the_scores_decide_and_not_the_weights():
    weight = floats([[9, 1], [8, 2]])
    assert prune(weight, floats([[1, 4], [2, 3]]), 0.5).tolist() == [[0, 1], [0, 2]]


def test_of_equal_scores_the_later_go_first():
    weight = floats([[1, -1, 1], [-1, 0.5, 1]])
    assert prune(weight, np.abs(weight), 0.5).tolist() == [[1, -1, 1], [0, 0, 0]]
    assert prune(weight, np.abs(weight), 1 / 3, scope="row").tolist() == [[1, -1, 0], [-1, 0, 1]]


def test_zeros_count_first_whatever_their_score():
    assert prune(floats([[0, 1, 2, 3]]), floats([[9, 1, 2, 3]]), 0.5).tolist() == [[0, 0, 2, 3]]
    assert prune(floats([[5, 6, 7, 0]]), floats([[0, 0, 0, 0]]), 0.25).tolist() == [[5, 6, 7, 0]]


def test_more_zeros_than_asked_for_stay_and_nothing_is_added():
    weight = floats([[0, 0, 0, 1]])
    assert prune(weight, np.abs(weight), 0.5).tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("fraction", "zeros"), [(0, 0), (0.04, 0), (0.06, 1), (0.25, 2), (0.5, 5), (0.66, 7), (0.999, 10)]
)
def test_the_number_of_zeros_is_the_nearest_to_the_fraction(fraction, zeros):
    weight = normal(2, 5)
    assert np.count_nonzero(prune(weight, np.abs(weight), fraction) == 0) == zeros


def test_the_input_is_not_touched_and_the_type_is_kept():
    weight = normal(6, 8).astype(np.float16)
    before = weight.copy()
    assert prune(weight, magnitude_scores(weight), 0.5).dtype == np.float16
    assert prune_below(weight, magnitude_scores(weight), 0.5).dtype == np.float16
    assert np.array_equal(weight, before)


def test_a_transposed_view_is_pruned_like_its_copy():
    weight = normal(6, 8).T
    for scope in ("layer", "row"):
        pruned = prune(weight, np.abs(weight), 0.4, scope)
        assert np.array_equal(pruned, prune(weight.copy(), np.abs(weight.copy()), 0.4, scope))


# --- properties


@given(matrices, fractions)
def test_a_layer_has_exactly_the_zeros_asked_for_or_those_it_had(weight, fraction):
    pruned = prune(weight, np.abs(weight), fraction)
    zeros = np.count_nonzero(pruned == 0)
    assert zeros == max(round(fraction * weight.size), np.count_nonzero(weight == 0))
    assert np.array_equal(pruned[pruned != 0], weight[pruned != 0])
    assert np.abs(weight[pruned == 0]).max(initial=0) <= np.abs(pruned[pruned != 0]).min(initial=np.inf)


@given(matrices, fractions)
def test_pruning_rows_is_pruning_each_row_as_a_layer(weight, fraction):
    rows = [prune(row[None], np.abs(row[None]), fraction)[0] for row in weight]
    assert np.array_equal(prune(weight, np.abs(weight), fraction, scope="row"), rows)


@given(matrices, fractions)
def test_pruning_again_changes_nothing(weight, fraction):
    once = prune(weight, np.abs(weight), fraction)
    assert np.array_equal(prune(once, np.abs(once), fraction), once)


# --- parity: torch


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.83])
def test_the_zeros_are_those_of_torchs_l1_pruning(fraction):
    import torch
    from torch.nn.utils import prune as torch_prune

    weight = normal(40, 30)
    assert np.unique(np.abs(weight)).size == weight.size  # torch promises nothing of ties
    linear = torch.nn.Linear(30, 40, bias=False)
    linear.weight.data = torch.from_numpy(weight.copy())
    torch_prune.l1_unstructured(linear, "weight", amount=fraction)
    assert np.array_equal(prune(weight, magnitude_scores(weight), fraction), linear.weight.detach().numpy())


# --- one threshold for many layers


def layers_of_mixed_scales():
    rng = np.random.default_rng(6)
    scales = [1e-6, 1e-2, 0.02, 1, 3e4]
    layers = [(scale * rng.standard_normal((60, 300))).astype(np.float32) for scale in scales]
    layers.append(rng.uniform(1, 2, (50, 100)).astype(np.float16))
    layers[1][:, ::7] = 0
    return layers


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.77, 0.9, 0.99])
def test_a_global_fraction_is_met_to_a_thousandth_over_mixed_scales(fraction):
    layers = layers_of_mixed_scales()
    histogram = ScoreHistogram()
    for layer in layers:
        histogram.add(magnitude_scores(layer))
    threshold = histogram.threshold(fraction)
    pruned = [prune_below(layer, magnitude_scores(layer), threshold) for layer in layers]
    zeros = sum(np.count_nonzero(layer == 0) for layer in pruned)
    had = sum(np.count_nonzero(layer == 0) for layer in layers)
    total = sum(layer.size for layer in layers)
    assert had / total < 0.03
    assert abs(zeros / total - max(fraction, had / total)) < 1e-3


def test_a_global_threshold_prunes_what_torch_prunes_globally():
    import torch
    from torch.nn.utils import prune as torch_prune

    weights = [normal(30, 200, seed=1), 0.1 * normal(60, 100, seed=2)]
    modules = [torch.nn.Linear(*weight.shape[::-1], bias=False) for weight in weights]
    histogram = ScoreHistogram()
    for module, weight in zip(modules, weights, strict=True):
        module.weight.data = torch.from_numpy(weight.copy())
        histogram.add(magnitude_scores(weight))
    pairs = [(module, "weight") for module in modules]
    torch_prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=0.6)
    threshold = histogram.threshold(0.6)
    differing = sum(
        np.count_nonzero(prune_below(weight, magnitude_scores(weight), threshold) != module.weight.detach().numpy())
        for module, weight in zip(modules, weights, strict=True)
    )
    assert differing <= 12  # a thousandth: those in the threshold's own bin


def test_a_threshold_lies_between_the_scores_that_it_parts():
    histogram = ScoreHistogram()
    histogram.add(floats([[1, 2], [4, 8]]))
    histogram.add(floats([16, 32, 64, 128]))
    assert 2 < histogram.threshold(0.25) <= 4
    assert 64 < histogram.threshold(0.875) <= 128


@pytest.mark.parametrize("score", [1e-45, 1e-30, 1.0, 3e38])
def test_a_threshold_is_exact_to_a_bins_width(score):
    histogram = ScoreHistogram()
    histogram.add(floats([score, score, score, np.float32(3.4e38)]))
    assert histogram.threshold(0.7) == pytest.approx(score, rel=1 / 4096)
    assert histogram.threshold(0.7) > np.float32(score)
    assert histogram.threshold(0.1) == 0


def test_no_fraction_prunes_nothing_even_of_zero_scores():
    histogram = ScoreHistogram()
    histogram.add(floats([0, -0.0, 1]))
    assert prune_below(floats([[5, 6, 7]]), floats([[0, 0, 1]]), histogram.threshold(0)).tolist() == [[5, 6, 7]]


def test_equal_scores_stay_together():
    histogram = ScoreHistogram()
    histogram.add(np.full(10, 3.0))
    assert histogram.threshold(0.4) <= 3 < histogram.threshold(0.6)


def test_a_large_weight_counts_to_its_end():
    scores = np.linspace(1, 2, 3 << 20, dtype=np.float32)  # several times what is counted at once
    histogram = ScoreHistogram()
    histogram.add(scores)
    assert histogram.threshold(0.9) == pytest.approx(1.9, rel=1 / 4096)


def test_a_score_at_the_threshold_stays():
    weight = floats([[1, 2, 3]])
    assert prune_below(weight, weight, 2.0).tolist() == [[0, 2, 3]]


# --- storage


def test_a_pruned_weight_is_a_mask_and_what_is_left():
    packed = pack(np.array([[0, 1.5, 2.5], [0, 0, 0], [-1, 0, 4]], np.float16))
    assert packed.mask_bits.tolist() == [0b01000110, 0b1]
    assert packed.values.tolist() == [1.5, 2.5, -1, 4]
    assert packed.values.dtype == np.float16
    assert packed.shape == (3, 3)
    assert packed.size_bits == 2 * 8 + 4 * 16


@given(hnp.array_shapes(min_dims=2, max_dims=2, max_side=15), st.data())
def test_packing_is_exact_in_every_type(shape, data):
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.int8]))
    weight = data.draw(hnp.arrays(dtype, shape, elements=st.integers(-3, 3)))
    for laid_out in (weight, weight.T):
        back = unpack(pack(laid_out))
        assert (back.dtype, back.shape) == (dtype, laid_out.shape)
        assert np.array_equal(back, laid_out)


def test_a_weight_without_zeros_and_one_of_zeros_survive():
    assert np.array_equal(unpack(pack(np.full((3, 5), 2, np.int8))), np.full((3, 5), 2))
    zeros = pack(np.zeros((3, 5), np.float32))
    assert zeros.values.shape == (0,)
    assert np.array_equal(unpack(zeros), np.zeros((3, 5)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_values_that_do_not_match_the_mask_are_refused(count):
    packed = pack(floats([[1, 2, 3, 0]]))
    with pytest.raises(ValueError, match=f"marks 3 elements, but there are {count} values"):
        unpack(PrunedWeights(packed.mask_bits, np.ones(count, np.float32), packed.shape))


def test_a_mask_too_short_for_the_shape_is_refused():
    packed = pack(normal(4, 4))
    with pytest.raises(ValueError, match="2 bytes hold 16 values"):
        unpack(PrunedWeights(packed.mask_bits, packed.values, (4, 5)))


# --- what is refused, and what is not


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, np.nan])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    histogram = ScoreHistogram()
    histogram.add(floats([1]))
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\)"):
        prune(floats([[1]]), floats([[1]]), fraction)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\)"):
        histogram.threshold(fraction)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "use",
    [
        magnitude_scores,
        pack,
        lambda weight: wanda_scores(weight, np.ones(2)),
        lambda weight: wanda_scores(np.ones((2, 2)), weight[1]),
        lambda weight: prune(weight, np.ones((2, 2)), 0.5),
        lambda weight: prune(np.ones((2, 2)), weight, 0.5),
        lambda weight: prune_below(weight, np.ones((2, 2)), 0.5),
        lambda weight: prune_below(np.ones((2, 2)), weight, 0.5),
        lambda weight: ScoreHistogram().add(weight),
    ],
)
def test_nan_and_infinity_are_refused(use, bad):
    with pytest.raises(ValueError, match=r"must be finite .*got NaN|must be finite, got NaN"):
        use(floats([[1, 2], [bad, 4]]))


def test_negative_scores_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        prune(np.ones((1, 2)), floats([[1, -1]]), 0.5)
    with pytest.raises(ValueError, match="not negative"):
        wanda_scores(np.ones((1, 2)), floats([1, -1]))
    with pytest.raises(ValueError, match="not negative"):
        ScoreHistogram().add(floats([1, -1]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(3, 2\)"):
        prune(normal(2, 3), np.ones((3, 2)), 0.5)
    with pytest.raises(ValueError, match=r"\(3,\), got \(2,\)"):
        wanda_scores(normal(2, 3), np.ones(2))
    with pytest.raises(ValueError, match=r"matrix .*got shape \(2, 3, 1, 1\)"):
        pack(normal(2, 3, 1, 1))


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="'layer' or 'row', got 'column'"):
        prune(normal(2, 3), np.ones((2, 3)), 0.5, scope="column")


def test_a_histogram_of_nothing_has_no_threshold():
    with pytest.raises(ValueError, match="no scores were added"):
        ScoreHistogram().threshold(0.5)


def test_an_empty_weight_is_pruned_and_stored_as_such():
    empty = np.zeros((0, 4), np.float32)
    assert prune(empty, empty, 0.5).shape == (0, 4)
    assert unpack(pack(empty)).shape == (0, 4)
