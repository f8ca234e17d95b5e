"""Rounded activations: where the operators are put, that they round as the ranges say, and that engines use them."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import CHANNELS, FLOAT, SIDE, initializer, inputs, named, run, session, small_model, snr_db

from outzoom.compress.activations import (
    activations,
    asymmetric_codes,
    convolved,
    product_factors,
    quantize_activations,
    symmetric_codes,
    unsigned_symmetric_codes,
)
from outzoom.compress.bias import biases_apart
from outzoom.compress.packing import PackedWriter
from outzoom.compress.ranges import choose_range
from outzoom.compress.recipe import Recipe, Rule
from outzoom.compress.statistics import TensorStatistics
from outzoom.compress.weights import compress_weights


def everything(operator, name):
    return True


def measured(model, names):
    """Statistics of the named tensors over a few inputs."""
    made = model.clone()
    known = {value.name for value in made.graph.outputs}
    for node in made.graph:
        made.graph.outputs.extend(v for v in node.outputs if v.name in names and v.name not in known)
    outputs = [value.name for value in made.graph.outputs]
    found = dict.fromkeys(names)
    engine = session(made)
    for seed in range(8):
        feeds = inputs(seed)
        arrays = {**feeds, **dict(zip(outputs, engine.run(None, feeds), strict=True))}
        for name, axis in names.items():
            found[name] = found[name] or TensorStatistics.empty(arrays[name].shape[axis])
            found[name].add(arrays[name], axis)
    return found


def quantized(*, outputs, products=False, layers=everything, codes=asymmetric_codes):
    model = small_model()
    names = activations(model, layers, products, outputs)
    symmetric = codes is not asymmetric_codes
    found = {name: [codes(choose_range(one, "minmax", symmetric))] for name, one in measured(model, names).items()}
    return quantize_activations(model, found, layers, products, outputs)


def count(model, kind):
    return sum(node.op_type == kind for node in model.graph)


def test_the_inputs_of_layers_are_found_with_their_channel_axis():
    names = activations(small_model(), everything, products=False, outputs=False)
    assert names == {"picture": 1, "rows": -1, "embedded": -1}  # a Gather looks rows up: it has no input to round
    with_outputs = activations(small_model(), everything, products=False, outputs=True)
    assert with_outputs == {**names, "conv.out": 1}


def test_only_the_layers_that_are_asked_for_are_found():
    names = activations(small_model(), lambda operator, name: name == "linear.weight", products=False, outputs=True)
    assert names == {"rows": -1}


def test_what_flows_into_a_layer_too_small_to_be_compressed_is_not_rounded(monkeypatch):
    assert activations(small_model(), everything, products=False, outputs=False).keys() == {
        "picture",
        "rows",
        "embedded",
    }
    monkeypatch.setattr("outzoom.compress.layers.MIN_ELEMENTS", CHANNELS * CHANNELS + 1)
    assert activations(small_model(), everything, products=False, outputs=False) == {"picture": 1}


@pytest.mark.parametrize("outputs", [True, False])
def test_each_activation_is_rounded_once_and_the_result_is_near(outputs):
    model = quantized(outputs=outputs)
    assert count(model, "QuantizeLinear") == count(model, "DequantizeLinear") == 3 + outputs
    exact = run(small_model())
    assert 30 < snr_db(exact, run(model)) < 60


def test_the_callers_model_is_not_touched():
    model = small_model()
    nodes = [node.op_type for node in model.graph]
    codes = dict.fromkeys(("picture", "rows", "embedded"), (asymmetric_codes((-9.0, 9.0)),))
    quantize_activations(model, codes, everything, products=False, outputs=False)
    assert [node.op_type for node in model.graph] == nodes
    assert "picture.scale" not in model.graph.initializers


def test_values_beyond_the_range_are_clipped():
    model = small_model()
    ranges = {"picture": (0.0, 0.0), "rows": (-9.0, 9.0), "embedded": (0.0, 0.0)}
    codes = {name: [asymmetric_codes(ends)] for name, ends in ranges.items()}
    made = quantize_activations(model, codes, everything, products=False, outputs=False)
    # nothing of picture or words gets through: the smallest range there is, 1e-12, is not quite nothing
    assert np.allclose(run(made, inputs(1)), run(made, inputs(2)), rtol=0, atol=1e-9)
    assert not np.allclose(run(small_model(), inputs(1)), run(small_model(), inputs(2)), rtol=0, atol=0.1)


def rounding_model(low, high, codes):
    """rows (1, 32), rounded as if for a product with the unit matrix."""
    rows = ir.Value(name="rows", shape=ir.Shape([1, 32]), type=FLOAT)
    weight = initializer("linear.weight", np.eye(32, dtype=np.float32))
    product = ir.node("MatMul", [rows, weight])
    out = named(product, "out", [1, 32])
    graph = ir.Graph([rows], [out], nodes=[product], initializers=[weight], opset_imports={"": 21}, name="g")
    model = ir.Model(graph, ir_version=10)
    return quantize_activations(model, {"rows": [codes((low, high))]}, everything, False, False)


@pytest.mark.parametrize("codes", [symmetric_codes, unsigned_symmetric_codes])
def test_symmetric_codes_by_hand(codes):
    """A step is a 127th of the end, 0 is exact, and what is beyond the ends is clipped to a code of int8."""
    rows = np.zeros((1, 32), np.float32)
    rows[0, :6] = 127, 0.4, 0.6, -5.5, 300, -300
    found = run(rounding_model(-127.0, 127.0, codes), {"rows": rows})[0]
    assert found[:4].tolist() == [127, 0, 1, -6]  # halves go to the even code
    assert found[4] == 127
    assert found[5] == -128  # there is one code more there
    assert found[6:].tolist() == [0] * 26


def test_symmetric_codes_are_int8_with_zero_for_zero():
    model = quantized(outputs=True, codes=symmetric_codes)
    points = [value for name, value in model.graph.initializers.items() if name.endswith(".zero_point")]
    assert len(points) == 4
    for value in points:
        assert value.const_value.dtype == ir.DataType.INT8
        assert value.const_value.numpy() == 0
    assert 28 < snr_db(run(small_model()), run(model)) < 60


def integer_model(folder, codes):
    recipe = Recipe("test", "", "float32", "float32", 0.0, True, (Rule(operators=("Conv", "MatMul"), engine="int8"),))
    writer = PackedWriter(folder / "packed.safetensors", True)
    return compress_weights(quantized(outputs=True, codes=codes), "unet", recipe, writer)[0]


def test_openvino_computes_symmetric_codes_in_integers(tmp_path):
    import openvino

    model = integer_model(tmp_path, symmetric_codes)
    read = openvino.Core().read_model(ir.to_proto(model).SerializeToString())
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs())[0]
    # engines round halves their own way, and OpenVINO has the convolution's output in float
    assert snr_db(run(small_model()), found) > 28
    ran = {
        info["layerType"].astype(str): info["runtimePrecision"].astype(str)
        for info in (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    }
    assert ran["Convolution"] == ran["FullyConnected"] == "i8"


def executed_operators(model, folder):
    """The operators that ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("codes", [asymmetric_codes, symmetric_codes, unsigned_symmetric_codes])
def test_onnx_runtime_computes_the_layers_in_integers(tmp_path, codes):
    model = integer_model(tmp_path, codes)
    operators = executed_operators(model, tmp_path)
    assert "QLinearConv" in operators
    assert "Conv" not in operators
    assert "MatMul" not in operators
    assert {"MatMulIntegerToFloat", "QLinearMatMul"} & set(operators)
    assert snr_db(run(small_model()), run(model)) > 28


def test_a_bias_stays_apart_from_the_product_that_it_is_added_to(tmp_path):
    """With a bias of one axis ONNX Runtime would make a float Gemm of both."""
    model = small_model()
    (add,) = (node for node in model.graph if node.op_type == "Add")
    bias = initializer("linear.bias", np.linspace(-1, 1, CHANNELS).astype(np.float32))
    model.graph.register_initializer(bias)
    biased = ir.node("Add", [add.inputs[0], bias])
    model.graph.insert_before(add, biased)
    add.replace_input_with(0, named(biased, "biased", [1, SIDE * SIDE, CHANNELS]))
    names = activations(model, everything, products=False, outputs=False)
    codes = {name: [asymmetric_codes(choose_range(one, "minmax"))] for name, one in measured(model, names).items()}
    made = quantize_activations(model, codes, everything, products=False, outputs=False)
    recipe = Recipe("test", "", "float32", "float32", 0.0, True, (Rule(operators=("MatMul",), engine="int8"),))
    made, _ = compress_weights(made, "unet", recipe, PackedWriter(tmp_path / "packed.safetensors", True))
    assert snr_db(run(model), run(made)) > 28
    assert "MatMulIntegerToFloat" in executed_operators(made, tmp_path)
    assert "linear.bias" in model.graph.initializers


def test_a_bias_that_is_added_after_its_convolution_makes_the_same():
    model = biases_apart(small_model())
    assert [node.op_type for node in model.graph][:2] == ["Conv", "Add"]
    assert np.allclose(run(model), run(small_model()), atol=1e-5)  # sums of 288 products in float32, in another order
    assert "conv.bias" not in model.graph.initializers
    assert activations(model, everything, products=False, outputs=True)["conv.out.unbiased"] == 1


def timed_model():
    """The small model with a timestep, which its graph does not use."""
    model = small_model()
    model.graph.inputs.append(ir.Value(name="timestep", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)))
    return model


@pytest.mark.parametrize(("timestep", "part"), [(0, 0), (99, 0), (100, 1), (499, 1), (500, 2), (999, 2)])
def test_a_timestep_has_the_ranges_of_its_part_of_the_schedule(timestep, part):
    parts = [asymmetric_codes(ends) for ends in ((-1.0, 1.0), (-2.0, 3.0), (-9.0, 9.0))]
    names = activations(small_model(), everything, products=False, outputs=True)
    in_parts = quantize_activations(
        timed_model(), dict.fromkeys(names, parts), everything, products=False, outputs=True, boundaries=[100, 500]
    )
    alone = quantize_activations(
        small_model(), {name: [parts[part]] for name in names}, everything, products=False, outputs=True
    )
    timed = {**inputs(), "timestep": np.array([timestep], np.float32)}
    assert np.array_equal(run(in_parts, timed), run(alone))


def test_onnx_runtime_computes_in_integers_with_ranges_by_timestep(tmp_path):
    model = biases_apart(timed_model())
    names = activations(model, everything, products=False, outputs=True)
    parts = asymmetric_codes((-3.0, 3.0)), asymmetric_codes((-9.0, 9.0))
    model = quantize_activations(
        model, dict.fromkeys(names, parts), everything, products=False, outputs=True, boundaries=[500]
    )
    recipe = Recipe("test", "", "float32", "float32", 0.0, True, (Rule(operators=("Conv", "MatMul"), engine="int8"),))
    model, _ = compress_weights(model, "unet", recipe, PackedWriter(tmp_path / "packed.safetensors", True))
    operators = executed_operators(model, tmp_path)
    assert "QLinearConv" in operators
    assert {"MatMulIntegerToFloat", "QLinearMatMul"} & set(operators)
    assert not {"Conv", "MatMul"} & set(operators)


def test_factors_of_products_are_those_that_are_both_activations():
    model = small_model()
    assert product_factors(model) == set()
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    turned = ir.node("Transpose", [product.inputs[0]], {"perm": [0, 2, 1]})
    other = ir.node("MatMul", [named(turned, "turned", [1, CHANNELS, SIDE * SIDE]), product.inputs[0]])
    model.graph.insert_after(product, [turned, other])
    assert product_factors(model) == {"turned", "rows"}


def test_a_convolution_of_single_pixels_is_a_product_of_matrices():
    model = small_model()
    assert convolved(model) == {"picture"}
    (conv,) = (node for node in model.graph if node.op_type == "Conv")
    conv.replace_input_with(1, initializer("pointwise", np.zeros((CHANNELS, CHANNELS, 1, 1), np.float32)))
    assert convolved(model) == set()
