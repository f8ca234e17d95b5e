"""Graphs that compute in float16, made of small ones by hand; ONNX Runtime is the judge of what they compute."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import initializer, named, run, small_model

from outzoom.compress.cast import cast_weights
from outzoom.compress.dequantize import dequantize_blocks, dequantize_weight
from outzoom.compress.half import compute_in_float16
from outzoom.compress.int4 import compress, decompress
from outzoom.export.parity import tensor_psnr_db

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def types(model):
    """The type of what each kind of node makes."""
    return {node.op_type: node.outputs[0].dtype for node in model.graph}


def node_model(nodes, inputs, initializers=()):
    """A model of nodes, the last of which makes its output, `y`."""
    nodes[-1].outputs[0].name = "y"
    graph = ir.Graph(
        inputs, [nodes[-1].outputs[0]], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def given(name, *shape):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(FLOAT))


def product(weight, x=None):
    """y = x @ weight."""
    x = given("x", 2, weight.shape[0]) if x is None else x
    stored = initializer("weight", weight)
    node = ir.node("MatMul", [x, stored])
    named(node, "y", [2, weight.shape[1]])
    return node_model([node], [x], [stored])


def test_a_graph_computes_in_float16_between_inputs_and_outputs_of_float32():
    model = small_model()
    half = compute_in_float16(model)
    assert [value.dtype for value in (*half.graph.inputs, *half.graph.outputs)] == [FLOAT, ir.DataType.INT64, FLOAT]
    made = types(half)
    assert {made[kind] for kind in ("Conv", "MatMul", "Gemm", "Gather", "Add", "ReduceMean")} == {HALF}
    assert all(value.dtype != FLOAT for value in half.graph.initializers.values())
    assert [value.name for value in half.graph.outputs] == ["out"]
    assert tensor_psnr_db(run(model), run(half)) > 60  # 11 bits
    assert types(model)["Conv"] == FLOAT


def test_weights_that_are_stored_in_float16_are_used_as_they_are():
    half = compute_in_float16(cast_weights(small_model()))
    casts = [node.inputs[0].name for node in half.graph if node.op_type == "Cast"]
    assert casts == ["picture", "out.float16"]
    assert "linear.weight.transposed10.float16" in half.graph.initializers


def test_normalizations_and_what_leads_to_angles_stay_in_float32():
    x, time = given("x", 1, 4, 3, 3), given("time", 1)
    scale, bias = initializer("scale", np.ones(4, np.float32)), initializer("bias", np.zeros(4, np.float32))
    frequencies = initializer("frequencies", np.array([1.0, 0.001], np.float32))
    angle = ir.node("Mul", [time, frequencies])
    sine = ir.node("Sin", [named(angle, "angle", [2])])
    total = ir.node("ReduceSum", [named(sine, "sine", [2])], {"keepdims": 0})
    normal = ir.node("GroupNormalization", [x, scale, bias], {"num_groups": 2})
    y = ir.node("Add", [named(normal, "normal", [1, 4, 3, 3]), named(total, "total", [])])
    named(y, "y", [1, 4, 3, 3])
    model = node_model([angle, sine, total, normal, y], [x, time], [scale, bias, frequencies])
    half = compute_in_float16(model)
    made = types(half)
    assert {made[kind] for kind in ("Mul", "Sin", "GroupNormalization")} == {FLOAT}
    assert {made[kind] for kind in ("ReduceSum", "Add")} == {HALF}
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, 3, 3), np.float32), "time": np.float32([999.0])}
    assert np.allclose(run(model, feeds), run(half, feeds), atol=5e-3)


def test_a_product_with_a_weight_beyond_float16_stays_in_float32():
    weight = np.float32([[1e5, 1.0]] * 4)
    half = compute_in_float16(product(weight))
    assert types(half) == {"MatMul": FLOAT}
    assert run(half, {"x": np.ones((2, 4), np.float32)})[0].tolist() == [4e5, 4.0]


def test_a_mask_beyond_float16_becomes_its_largest_number_and_minus_infinity_stays():
    x = given("x", 2)
    mask = initializer("mask", np.float32([np.finfo(np.float32).min, -np.inf]))
    node = ir.node("Add", [x, mask])
    named(node, "y", [2])
    half = compute_in_float16(node_model([node], [x], [mask]))
    assert half.graph.initializers["mask.float16"].const_value.numpy().tolist() == [-65504, -np.inf]


@pytest.mark.parametrize(("scale", "dtype"), [(0.01, HALF), (1e-6, FLOAT)])
def test_int8_weights_are_made_float16_unless_float16_has_no_such_scale(scale, dtype):
    codes = np.random.default_rng(0).integers(-127, 128, (32, 32)).astype(np.int8)
    model = product(codes * np.float32(scale))
    (weight,) = [value for value in model.graph.initializers.values() if value.name == "weight"]
    dequantize_weight(model, weight, ir.tensor(codes, name="codes"), np.full(32, scale, np.float32), 1)
    half = compute_in_float16(model)
    assert types(half)["DequantizeLinear"] == dtype
    assert types(half)["MatMul"] == HALF
    feeds = {"x": np.ones((2, 32), np.float32)}
    assert np.allclose(run(half, feeds), codes.sum(0) * scale, rtol=0.01, atol=32 * 127 * scale / 2000)


def test_four_bits_in_blocks_are_decoded_to_float16_and_multiplied():
    weight = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)  # outputs, inputs
    blocks = compress(weight, 32, positive=True)
    model = product(np.ascontiguousarray(weight.T))
    dequantize_blocks(model, model.graph.initializers["weight"], blocks)
    half = compute_in_float16(model)
    assert [node.op_type for node in half.graph] == ["Cast", "DequantizeLinear", "MatMul", "Cast"]
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    for one in (model, half):
        assert tensor_psnr_db(x @ decompress(blocks).T, run(one, {"x": x})) > 55


@pytest.mark.parametrize("columns", [60, 32])
def test_four_bits_that_tensorrt_does_not_read_are_refused(columns):
    weight = np.random.default_rng(0).standard_normal((48, columns)).astype(np.float32)
    model = product(np.ascontiguousarray(weight.T))
    blocks = compress(weight, 32, positive=columns != 32)
    with pytest.raises(ValueError, match="no whole blocks" if columns == 60 else "not positive"):
        dequantize_blocks(model, model.graph.initializers["weight"], blocks)


def test_a_resize_keeps_its_factors_in_float32():
    x = given("x", 1, 1, 2, 2)
    factors = initializer("factors", np.float32([1, 1, 2, 2]))
    node = ir.node("Resize", [x, None, factors], {"mode": "nearest"})
    named(node, "y", [1, 1, 4, 4])
    half = compute_in_float16(node_model([node], [x], [factors]))
    assert half.graph.initializers["factors"].dtype == FLOAT
    assert run(half, {"x": np.ones((1, 1, 2, 2), np.float32)}).shape == (1, 1, 4, 4)
