"""Half-precision storage on graphs made by hand."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from outzoom.compress.cast import MIN_ELEMENTS, cast_weights

SIDE = 32
assert SIDE * SIDE >= MIN_ELEMENTS


def model_of(weight, *, dtype=np.float32):
    """y = x @ weight + bias."""
    weight = ir.Value(name="weight", const_value=ir.tensor(weight.astype(dtype), name="weight"))
    bias = ir.Value(name="bias", const_value=ir.tensor(np.full(SIDE, 0.1, np.float32), name="bias"))
    shape, kind = ir.Shape([1, SIDE]), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=shape, type=kind)
    product = ir.node("MatMul", [x, weight])
    total = ir.node("Add", [product.outputs[0], bias])
    total.outputs[0].name, total.outputs[0].shape, total.outputs[0].type = "y", shape, kind
    graph = ir.Graph(
        [x], [total.outputs[0]], nodes=[product, total], initializers=[weight, bias], opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def weights_of(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def run(model, x):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture
def weight():
    return np.random.default_rng(3).standard_normal((SIDE, SIDE)).astype(np.float32)


def test_large_weights_are_halved_and_small_ones_stay_exact(weight):
    stored = weights_of(cast_weights(model_of(weight)))
    assert stored.keys() == {"weight.float16", "bias"}
    assert stored["weight.float16"].dtype == np.float16
    assert np.array_equal(stored["weight.float16"], weight.astype(np.float16))
    assert np.array_equal(stored["bias"], np.full(SIDE, 0.1, np.float32))


def test_the_graph_casts_back_and_computes_in_float32(weight):
    model = cast_weights(model_of(weight))
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Add"]
    x = np.ones((1, SIDE), np.float32)
    exact = x @ weight.astype(np.float16).astype(np.float32) + np.float32(0.1)
    assert np.allclose(run(model, x), exact, rtol=0, atol=1e-5)  # the order of 32 float32 additions


def test_the_input_model_is_not_touched(weight):
    model = model_of(weight)
    before = ir.to_proto(model).SerializeToString()
    cast_weights(model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("peak", [65505.0, -1e30, np.inf, np.nan])
def test_a_weight_beyond_float16_stays_as_it_is(weight, peak):
    weight[3, 4] = peak
    stored = weights_of(cast_weights(model_of(weight)))
    assert np.array_equal(stored["weight"], weight, equal_nan=True)


def test_the_largest_float16_is_still_halved(weight):
    weight[3, 4] = 65504.0
    assert weights_of(cast_weights(model_of(weight)))["weight.float16"][3, 4] == 65504


def test_values_below_float16s_smallest_step_round_to_zero(weight):
    weight[0, 0], weight[0, 1] = 2.0**-24, 2.0**-26
    halved = weights_of(cast_weights(model_of(weight)))["weight.float16"]
    assert halved[0, :2].tolist() == [2.0**-24, 0]


def test_a_weight_that_is_not_float32_stays_as_it_is(weight):
    assert weights_of(cast_weights(model_of(weight, dtype=np.float64))).keys() == {"weight", "bias"}


def test_casting_twice_changes_nothing_more(weight):
    once = cast_weights(model_of(weight))
    twice = cast_weights(once)
    assert ir.to_proto(twice).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_a_weight_used_twice_is_stored_once(weight):
    model = model_of(weight)
    again = ir.node("MatMul", [model.graph.inputs[0], model.graph.initializers["weight"]])
    again.outputs[0].name = "z"
    model.graph.append(again)
    model.graph.outputs.append(again.outputs[0])
    cast = cast_weights(model)
    assert [node.op_type for node in cast.graph].count("Cast") == 1
    assert {node.inputs[1].name for node in cast.graph if node.op_type == "MatMul"} == {"weight.cast"}
