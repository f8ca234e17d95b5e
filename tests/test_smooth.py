"""SmoothQuant: how large a channel's factor is, what becomes of a graph, and which recipes can ask for it."""

import msgspec
import numpy as np
import pytest
from graphs import block_inputs, block_model, block_statistics, loud_block, run, snr_db
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from outzoom.compress.activations import asymmetric_codes, quantize_activations
from outzoom.compress.inputs import Inputs
from outzoom.compress.packing import PackedWriter
from outzoom.compress.ranges import choose_range
from outzoom.compress.recipe import Activations, Recipe, Rule, Smooth
from outzoom.compress.smooth import smooth_activations, smoothing_factors
from outzoom.compress.weights import compress_weights

INTEGERS = (Rule(engine="int8"),)


def recipe_with(smooth=None, rules=INTEGERS, **options):
    rounded = Activations(range="minmax", **options)
    return Recipe("test", "test", "float32", "float32", 0, rules=rules, activations=rounded, smooth=smooth)


def measured(model, folder):
    return Inputs(block_statistics(model), folder)


def test_factors_by_hand():
    """A 4x4 weight, columns' peaks 1, 1/4, 4, 2, on inputs of peaks 16, 1, 4, 0: the last never fires."""
    weight = np.array([[1, 0.25, -4, 0], [0.5, -0.125, 2, 2], [-1, 0.25, 1, -2], [0, 0, 3, 1]], np.float32)
    peaks = np.array([16, 1, 4, 0], np.float32)
    assert smoothing_factors(peaks, np.abs(weight).max(0), 0.5).tolist() == [4, 2, 1, 1]
    assert smoothing_factors(peaks, np.abs(weight).max(0), 1.0).tolist() == [16, 1, 4, 1]
    assert smoothing_factors(peaks, np.abs(weight).max(0), 0.0).tolist() == [1, 4, 0.25, 1]


positive = arrays(np.float32, 8, elements=st.floats(2.0**-10, 2.0**10, width=32))


@given(positive, positive, st.floats(0, 1))
def test_peaks_of_inputs_and_of_weights_are_what_alpha_makes_of_both(activation_peaks, weight_peaks, alpha):
    """x / s and W * s peak at (x W)^(1 - alpha) and (x W)^alpha: at alpha 1/2 the two are alike."""
    factors = smoothing_factors(activation_peaks, weight_peaks, alpha)
    both = activation_peaks.astype(np.float64) * weight_peaks
    assert activation_peaks / factors == pytest.approx(both ** (1 - alpha), rel=1e-5)
    assert weight_peaks * factors == pytest.approx(both**alpha, rel=1e-5)


def test_factors_stay_in_the_range_that_float32_can_take():
    assert smoothing_factors(np.float32([1e30, 1e-30]), np.float32([1, 1]), 1.0).tolist() == pytest.approx([1e5, 1e-5])


def test_layers_that_share_an_input_share_its_factors(tmp_path):
    model = loud_block()
    known = measured(model, tmp_path)
    made, _ = smooth_activations(model, "unet", recipe_with(Smooth(alpha=0.5)), known)
    names = [f"to_{letter}.weight.transposed10" for letter in "qk"]  # to_v's rows are divided, too
    before, after = ([one.graph.initializers[name].const_value.numpy() for name in names] for one in (model, made))
    shares = [b / a for a, b in zip(before, after, strict=True)]
    scale = [one.graph.initializers["norm1.weight"].const_value.numpy() for one in (model, made)]
    for share in shares:
        assert np.allclose(share, (scale[0] / scale[1])[:, None], rtol=1e-5)
    rows = made.graph.initializers["to_v.weight.transposed10"].const_value.numpy()
    weights = np.max([np.abs(matrix).max(1) for matrix in (*before, rows / shares[0][:, :1])], axis=0)
    assert np.allclose(shares[0][:, 0], np.sqrt(known.statistics["norm1"].peaks / weights), rtol=1e-4)


def test_a_smoothed_graph_computes_the_same_and_its_inputs_are_even(tmp_path):
    model = loud_block()
    (tmp_path / "after").mkdir()
    known = measured(model, tmp_path)
    exact = run(model, block_inputs())
    made, _ = smooth_activations(model, "unet", recipe_with(Smooth(alpha=0.5)), known)
    assert snr_db(exact, run(made, block_inputs())) > 110
    assert np.array_equal(run(model, block_inputs()), exact)
    before, after = (one.statistics["norm1"].peaks for one in (known, measured(made, tmp_path / "after")))
    assert before.max() / np.median(before) > 50
    assert after.max() / np.median(after) < 15  # the root of what it was


def rounded(model, recipe, folder):
    """A model with weights and activations of eight bits."""
    folder.mkdir()
    statistics = measured(model, folder).statistics
    codes = {name: [asymmetric_codes(choose_range(one, "minmax"))] for name, one in statistics.items()}
    quantized = quantize_activations(model, codes, lambda operator, layer: True, products=False, outputs=False)
    return compress_weights(quantized, "unet", recipe, PackedWriter(folder / "packed", False))[0]


def test_a_loud_channel_costs_the_others_less_when_it_is_smoothed(tmp_path):
    model, recipe = loud_block(), recipe_with(Smooth(alpha=0.5))
    exact = run(model, block_inputs(100))
    smoothed, _ = smooth_activations(model, "unet", recipe, measured(model, tmp_path))
    plain, even = (
        snr_db(exact, run(rounded(one, recipe, tmp_path / name), block_inputs(100)))
        for name, one in (("plain", model), ("even", smoothed))
    )
    assert even > plain + 15


def test_layers_whose_inputs_stay_are_named_with_the_reason(tmp_path):
    model = block_model()
    _, left = smooth_activations(model, "unet", recipe_with(Smooth()), measured(model, tmp_path))
    assert [(one.layer, one.reason) for one in left] == [
        ("last.weight", "is not smoothed: its input is a sum of activations, which have other uses")
    ]


def test_an_input_is_smoothed_for_all_of_its_layers_or_for_none(tmp_path):
    model = block_model()
    known = measured(model, tmp_path)
    made, left = smooth_activations(model, "unet", recipe_with(Smooth(layers=("to_q*", "to_k*"))), known)
    assert [one.layer for one in left] == ["to_q.weight", "to_k.weight"]
    assert all("shares its input with a layer" in one.reason for one in left)
    for name, value in model.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), made.graph.initializers[name].const_value.numpy())


def test_only_what_computes_in_integers_is_smoothed():
    rules = (Rule(layers=("*attn2*",), engine="float16"), Rule(engine="int8"))
    recipe = recipe_with(Smooth(components=("unet", "vae_decoder")), rules, components=("unet", "text_encoder"))
    assert recipe.smooths("unet", "MatMul", "a.attn1.to_q.weight")
    assert not recipe.smooths("unet", "MatMul", "a.attn2.to_q.weight")
    assert not recipe.smooths("text_encoder", "MatMul", "a.attn1.to_q.weight")
    assert [name for name in ("unet", "vae_decoder", "text_encoder") if recipe.has_smoothed(name)] == ["unet"]
    assert not recipe_with().has_smoothed("unet")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"smooth": {}}, "give both or neither"),
        ({"smooth": {"alpha": 1.5}, "activations": {}}, "<= 1"),
        ({"smooth": {"alpha": -0.1}, "activations": {}}, ">= 0"),
        ({"smooth": {"components": ["vae"]}, "activations": {}}, "vae"),
        ({"smooth": {"strength": 1}, "activations": {}}, "strength"),
    ],
)
def test_recipes_that_can_not_smooth_are_refused(table, said):
    least = {"name": "a", "description": "", "weights": "float16", "compute": "float32", "min_psnr_db": 0}
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({**least, **table}, Recipe)
