"""Factors folded into what makes a tensor: which tensors can be divided so, and that the graph computes the same."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import DEMO
from graphs import FLOAT, block_inputs, block_model, initializer, named, run, snr_db
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.compress.folding import fold, shared_inputs
from outzoom.export import Shapes, open_checkpoint
from outzoom.export.checkpoint import PART_OF
from outzoom.export.trace import load_skeleton, save_skeleton, trace

ROUNDING_DB = 110  # float32 rounds to 1.2e-7 of a number, 138 dB; sums and layers of it lose some


def array(model, name):
    return model.graph.initializers[name].const_value.numpy()


def product_of(model, name):
    return next(node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name.startswith(name))


def shared_by(model, name):
    """The input of the layer of that name."""
    return next(one for one in shared_inputs(model) if any(layer.name == f"{name}.weight" for layer in one.layers))


def factors(count, seed=0):
    return np.exp(np.random.default_rng(seed).normal(0, 1, count)).astype(np.float32)


def folded_everywhere(model):
    """A copy whose tensors are divided wherever that is possible, and how many are."""
    model, count = model.clone(), 0
    for number, shared in enumerate(reversed(shared_inputs(model))):
        if not shared.obstacle:
            fold(shared, factors(shared.layers[0].columns, number))
            count += 1
    return model, count


def test_a_normalization_is_divided_and_the_columns_are_multiplied_by_hand(monkeypatch):
    monkeypatch.setattr("outzoom.compress.layers.MIN_ELEMENTS", 1)
    x = ir.Value(name="x", shape=ir.Shape([3, 2]), type=FLOAT)
    weights = [
        initializer("norm.weight", np.array([2, 4], np.float32)),
        initializer("norm.bias", np.array([1, 3], np.float32)),
        initializer("linear.weight", np.array([[1, 2, 5], [3, 4, 6]], np.float32)),  # (inputs, outputs)
    ]
    norm = ir.node("LayerNormalization", [x, *weights[:2]], {"axis": -1})
    product = ir.node("MatMul", [named(norm, "normalized", [3, 2]), weights[2]])
    out = named(product, "out", [3, 3])
    graph = ir.Graph([x], [out], nodes=[norm, product], initializers=weights, opset_imports={"": 21}, name="g")
    (shared,) = shared_inputs(ir.Model(graph, ir_version=10))
    fold(shared, np.array([2, 0.5], np.float32))
    found = [value.const_value.numpy().tolist() for value in weights]
    assert found == [[1, 8], [0.5, 6], [[2, 4, 10], [1.5, 2, 3]]]


@pytest.mark.parametrize(
    ("layer", "together", "makers"),
    [
        ("to_q", ["to_q", "to_k", "to_v"], [("norm1.weight", 0, 0), ("norm1.bias", 0, 0)]),
        ("to_out", ["to_out"], [("to_v.bias", 0, 0), ("to_v.weight.transposed10", 1, 0)]),
        ("proj", ["proj"], [("norm2.weight", 0, 0), ("norm2.bias", 0, 0)]),
        ("down", ["down"], [("proj.bias", 0, 0), ("proj.weight.transposed10", 1, 0)]),
    ],
)
def test_what_is_divided_is_what_makes_the_input(layer, together, makers):
    shared = shared_by(block_model(), layer)
    assert [one.name for one in shared.layers] == [f"{name}.weight" for name in together]
    assert [(part.value.name, part.axis, part.start) for part in shared.makers] == makers


def test_only_the_half_of_a_gated_product_that_no_function_sees_is_divided():
    model = block_model()
    before = array(model, "proj.weight.transposed10")
    fold(shared_by(model, "down"), np.full(64, 4, np.float32))
    after = array(model, "proj.weight.transposed10")
    assert np.array_equal(after[:, :64], before[:, :64] / 4)
    assert np.array_equal(after[:, 64:], before[:, 64:])


def test_the_second_half_can_be_that_half():
    model = block_model()
    split, gelu, product = (next(n for n in model.graph if n.op_type == name) for name in ("Split", "Gelu", "Mul"))
    gelu.replace_input_with(0, split.outputs[0])
    product.replace_input_with(0, split.outputs[1])
    exact = run(model, block_inputs())
    assert [part.start for part in shared_by(model, "down").makers] == [64, 64]
    fold(shared_by(model, "down"), factors(64))
    assert snr_db(exact, run(model, block_inputs())) > ROUNDING_DB


def test_a_block_computes_the_same_after_folding():
    model = block_model()
    exact = run(model, block_inputs())
    made, count = folded_everywhere(model)
    assert count == 4
    assert snr_db(exact, run(made, block_inputs())) > ROUNDING_DB
    assert np.array_equal(run(model, block_inputs()), exact)  # the clone shares no tensor that was changed
    assert not np.array_equal(array(made, "to_v.weight.transposed10"), array(model, "to_v.weight.transposed10"))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=32, max_size=32))
def test_folding_the_inverse_undoes_it(exponents):
    """Powers of two, so that nothing is rounded."""
    model = block_model()
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    chosen = np.exp2(np.array(exponents, np.float32))
    fold(shared_by(model, "to_out"), chosen)
    fold(shared_by(model, "to_out"), 1 / chosen)
    assert all(np.array_equal(array(model, name), kept) for name, kept in before.items())


def test_no_weight_is_read_before_it_is_asked_for():
    model, reads = block_model(), []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        value.const_value = ir.LazyTensor(
            lambda tensor=tensor, name=name: reads.append(name) or tensor, tensor.dtype, shape=tensor.shape, name=name
        )
    made, _ = folded_everywhere(model)
    assert reads == []
    array(made, "to_v.weight.transposed10")
    assert reads == ["to_v.weight.transposed10"]


def used_elsewhere(model):
    model.graph.outputs.append(product_of(model, "to_q").inputs[0])


def used_by_a_function(model):
    normalized = product_of(model, "proj").inputs[0]
    extra = ir.node("Relu", [normalized])
    model.graph.append(extra)
    model.graph.outputs.append(named(extra, "extra", normalized.shape))


def weight_with_two_inputs(model):
    query, last = product_of(model, "to_q"), product_of(model, "last")
    last.replace_input_with(1, query.inputs[1])


def values_used_twice(model):
    model.graph.outputs.append(product_of(model, "to_v").outputs[0])


def bias_of_two(model):
    bias = model.graph.initializers["proj.bias"]
    extra = ir.node("Relu", [bias])
    model.graph.append(extra)
    model.graph.outputs.append(named(extra, "extra", bias.shape))


def from_outside(model):
    given = ir.Value(name="given", shape=ir.Shape([1, 6, 32]), type=FLOAT)
    model.graph.inputs.append(given)
    product_of(model, "to_q").replace_input_with(0, given)


def from_a_function(model):
    product = product_of(model, "down").inputs[0].producer()
    product_of(model, "down").replace_input_with(0, product.inputs[1])
    model.graph.remove(product, safe=True)


@pytest.mark.parametrize(
    ("change", "layer", "said"),
    [
        (lambda model: None, "last", "a sum of activations"),
        (used_elsewhere, "to_q", "used by whoever runs the graph, too"),
        (used_by_a_function, "proj", "used by Relu, too"),
        (weight_with_two_inputs, "to_q", "its weight is used with other inputs, too"),
        (values_used_twice, "to_out", "'to_v.product', which has other uses"),
        (bias_of_two, "down", "'proj.bias', which has other uses"),
        (from_outside, "to_q", "comes from outside of the graph"),
        (from_a_function, "down", "made by Gelu, which is not linear"),
    ],
)
def test_what_can_not_be_divided_is_left_with_the_reason(change, layer, said):
    model = block_model()
    change(model)
    shared = shared_by(model, layer)
    assert said in shared.obstacle
    assert shared.makers == ()
    with pytest.raises(ValueError, match="can't be divided"):
        fold(shared, factors(shared.layers[0].columns))


@pytest.mark.parametrize(
    ("component", "layers", "folded"),
    # layers in all, and those whose input is made by something that can be divided
    [
        ("text_encoder", 24, 20),  # all but fc2, behind a function
        ("unet", 97, 63),  # all but proj_out, behind a sum, keys and values of the text, and the time's projections
        ("vae_decoder", 4, 4),
    ],
)
def test_the_demo_models_components_compute_the_same_after_folding(component, layers, folded, tmp_path):
    model = traced(DEMO, component, Shapes(((128, 128),)), tmp_path)
    found = shared_inputs(model)
    assert sum(len(one.layers) for one in found) == layers
    assert sum(len(one.layers) for one in found if one.makers) == folded
    assert_computes_the_same_folded(model, tmp_path)


def test_open_dimensions_hide_no_channels(tiny_checkpoint, tiny_skeleton, tmp_path):
    skeleton = tiny_skeleton("unet", ((64, 64), (128, 64)), 2)
    model = load_skeleton(skeleton, open_checkpoint(tiny_checkpoint).weights(PART_OF["unet"]))
    found = shared_inputs(model)
    assert sum(len(one.layers) for one in found if one.makers) == 36  # nine in each of four blocks
    left = {layer.name.split(".")[-2] for one in found if one.obstacle for layer in one.layers}
    assert left == {"linear_1", "linear_2", "time_emb_proj", "to_k", "to_v", "proj_out"}
    assert_computes_the_same_folded(model, tmp_path)


def traced(folder, component, shapes, scratch):
    checkpoint = open_checkpoint(folder)
    save_skeleton(trace(checkpoint, component, shapes), scratch / "traced.onnx")
    return load_skeleton(scratch / "traced.onnx", checkpoint.weights(PART_OF[component]))


def assert_computes_the_same_folded(model, scratch):
    feeds = feeds_of(model)
    made, _ = folded_everywhere(model)
    exact, same = (outputs(one, scratch / name, feeds) for one, name in ((model, "exact"), (made, "folded")))
    assert snr_db(exact, same) > ROUNDING_DB


def feeds_of(model):
    rng, numbers = np.random.default_rng(0), {"batch": 2, "latent_height": 8, "latent_width": 12}
    numbers |= {name.removeprefix("latent_"): 8 * side for name, side in numbers.items()}
    found = {}
    for value in model.graph.inputs:
        shape = [side if isinstance(side, int) else numbers[str(side.value)] for side in value.shape]
        normal = rng.standard_normal(shape).astype(np.float32)
        found[value.name] = rng.integers(0, 600, shape) if value.dtype == ir.DataType.INT64 else normal
    return found


def outputs(model, folder: Path, feeds):
    folder.mkdir()
    ir.save(model, folder / "model.onnx", external_data="weights")
    return onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, feeds)[0]
