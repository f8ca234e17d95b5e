"""All of a graph in whole codes: which tensors, by which codes, and that it still computes the same."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import (
    CHANNELS,
    FLOAT,
    SIDE,
    block_inputs,
    block_model,
    initializer,
    inputs,
    named,
    run,
    session,
    small_model,
    snr_db,
)

from outzoom.compress.activations import asymmetric_codes, unsigned_symmetric_codes
from outzoom.compress.angles import angles_apart
from outzoom.compress.fixed_point import fixed_point_tensors, integer_biases, second_factors, to_fixed_point
from outzoom.compress.masks import MASKED, finite_masks
from outzoom.compress.packing import PackedWriter
from outzoom.compress.ranges import choose_range
from outzoom.compress.recipe import Activations, Recipe, Rule
from outzoom.compress.statistics import TensorStatistics
from outzoom.compress.weights import compress_weights

LAYERS = Rule(operators=("Conv", "MatMul", "Gemm"), engine="int8")
INT8 = Recipe("test", "", "float32", "float32", 0.0, False, (LAYERS,))


def measured(model, make_feeds, runs=8):
    """Statistics of the tensors that are to be rounded, over a few inputs."""
    names, watched = fixed_point_tensors(model), model.clone()
    known = {value.name for value in watched.graph.outputs}
    for node in watched.graph:
        watched.graph.outputs.extend(v for v in node.outputs if v.name in names and v.name not in known)
    outputs, engine = [value.name for value in watched.graph.outputs], session(watched)
    found = {}
    for seed in range(runs):
        feeds = make_feeds(seed)
        arrays = {**feeds, **dict(zip(outputs, engine.run(None, feeds), strict=True))}
        for name, axis in names.items():
            found.setdefault(name, TensorStatistics.empty(arrays[name].shape[axis])).add(arrays[name], axis)
    return found


def rounded(model, make_feeds, bits):
    centred = second_factors(model)
    codes = {}
    for name, one in measured(model, make_feeds).items():
        make = unsigned_symmetric_codes if name in centred else asymmetric_codes
        codes[name] = make(choose_range(one, "minmax", name in centred, bits), bits)
    return to_fixed_point(model, codes, bits)


def codes_of(model, name):
    """Scale and zero point by which a tensor is rounded."""
    scale, point = (model.graph.initializers[f"{name}.{kind}"].const_value.numpy() for kind in ("scale", "zero_point"))
    return float(scale), int(point)


def in_int8(model, folder):
    return compress_weights(model, "unet", INT8, PackedWriter(folder / "packed.safetensors", False))[0]


def test_codes_of_16_bits_by_hand():
    scale, zero_point = asymmetric_codes((-1.0, 3.0), 16)
    assert scale == np.float32(4 / 65535)
    assert zero_point == 16384  # a quarter of the way, 16383.75
    assert zero_point.dtype == np.uint16
    assert unsigned_symmetric_codes((-2.0, 1.0), 16) == (np.float32(2 / 32767), 32768)
    assert unsigned_symmetric_codes((-2.0, 1.0)) == (np.float32(2 / 127), 128)


def test_with_more_levels_less_is_clipped():
    values = np.random.default_rng(0).laplace(size=(100_000, 1)).astype(np.float32)
    found = TensorStatistics.empty(1)
    found.add(values, -1)
    assert choose_range(found, "mse", bits=16) == choose_range(found, "minmax")
    assert choose_range(found, "mse", bits=8) != choose_range(found, "minmax")


def test_what_is_only_moved_is_not_measured():
    # flat and rows are conv.out in another shape, embedded is a choice of the table's rows
    assert fixed_point_tensors(small_model()) == {
        "picture": 1, "conv.out": 1, "linear.out": -1, "gemm.out": -1, "mean": -1, "out": -1
    }  # fmt: skip


def test_every_tensor_is_rounded_once_and_what_is_moved_keeps_its_codes():
    model = rounded(small_model(), inputs, 16)
    quantized = [node.inputs[0].name for node in model.graph if node.op_type == "QuantizeLinear"]
    assert quantized == [
        "picture", "conv.out", "flat", "rows", "linear.out", "embedded", "gemm.out", "mean", "out.exact"
    ]  # fmt: skip
    assert codes_of(model, "flat") == codes_of(model, "rows") == codes_of(model, "conv.out")
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            floats = [value for value in node.inputs if value.dtype == ir.DataType.FLOAT and not value.is_initializer()]
            assert all(value.producer().op_type == "DequantizeLinear" for value in floats)


def test_outputs_keep_their_names_and_shapes():
    model = rounded(small_model(), inputs, 16)
    (out,) = model.graph.outputs
    assert (out.name, out.shape) == ("out", ir.Shape([1, SIDE * SIDE, CHANNELS]))
    assert out.producer().op_type == "DequantizeLinear"


@pytest.mark.parametrize(("bits", "low", "high"), [(8, 28, 45), (16, 35, 60)])
@pytest.mark.parametrize(("model", "feeds"), [(small_model, inputs), (block_model, block_inputs)])
def test_the_result_is_near_with_weights_of_eight_bits(tmp_path, bits, low, high, model, feeds):
    """With 16 bits what is lost is lost in the weights, whose 8 bits leave some 40 dB."""
    made = integer_biases(in_int8(rounded(model(), feeds, bits), tmp_path))
    assert low < snr_db(run(model(), feeds(3)), run(made, feeds(3))) < high


def test_the_callers_model_is_not_touched():
    model = small_model()
    before = [node.op_type for node in model.graph], set(model.graph.initializers)
    rounded(model, inputs, 8)
    assert before == ([node.op_type for node in model.graph], set(model.graph.initializers))


def test_the_second_factors_of_products_are_those_before_they_were_turned():
    assert second_factors(block_model()) == {"to_k.product", "to_v.out"}


def sigmoid_model():
    x = ir.Value(name="x", shape=ir.Shape([1, 4]), type=FLOAT)
    node = ir.node("Sigmoid", [x])
    out = named(node, "out", [1, 4])
    graph = ir.Graph([x], [out], nodes=[node], initializers=[], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("bits", [8, 16])
def test_sigmoids_have_codes_of_their_own_by_hand(bits):
    """From 0 to nearly 1, whatever was measured: HTP computes them for no others."""
    assert fixed_point_tensors(sigmoid_model()) == {"x": -1}
    model = to_fixed_point(sigmoid_model(), {"x": asymmetric_codes((-8.0, 8.0), bits)}, bits)
    assert (model.graph.initializers["out.scale"].const_value.numpy(), codes_of(model, "out")[1]) == (2.0**-bits, 0)
    found = run(model, {"x": np.array([[0.0, 8.0, -8.0, 100.0]], np.float32)})[0]
    assert np.allclose(found, [0.5, 0.99966, 0.00034, 0.99966], atol=2.0**-bits)


def test_biases_count_the_steps_of_both_factors_by_hand(tmp_path):
    """A weight's step is a 127th of its row's largest magnitude; the input's is what its codes say."""
    x = ir.Value(name="x", shape=ir.Shape([1, 2]), type=FLOAT)
    weight = initializer("small.weight", np.array([[127.0, 1.0], [0.5, -63.5]], np.float32))
    bias = initializer("small.bias", np.array([10.0, -3.0], np.float32))
    node = ir.node("Gemm", [x, weight, bias], {"transB": 1})
    out = named(node, "out", [1, 2])
    graph = ir.Graph([x], [out], nodes=[node], initializers=[weight, bias], opset_imports={"": 21}, name="g")
    codes = {"x": (np.float32(0.25), np.uint16(0)), "out": (np.float32(0.5), np.uint16(1000))}
    model = integer_biases(to_fixed_point(ir.Model(graph, ir_version=10), codes, 16))
    steps = next(v.const_value.numpy() for k, v in model.graph.initializers.items() if k.endswith(".steps"))
    assert steps.dtype == np.int32
    assert steps.tolist() == [40, -24]  # 10 / (0.25 * 1), -3 / (0.25 * 0.5)
    assert "small.bias" not in model.graph.initializers
    assert run(model, {"x": np.array([[1.0, 2.0]], np.float32)})[0].tolist() == [139.0, -129.5]


def test_a_bias_too_large_for_32_bits_is_refused():
    x = ir.Value(name="x", shape=ir.Shape([1, 1]), type=FLOAT)
    weight, bias = initializer("w", np.array([[1e-6]], np.float32)), initializer("b", np.array([5.0], np.float32))
    node = ir.node("Gemm", [x, weight, bias], {"transB": 1})
    graph = ir.Graph(
        [x], [named(node, "out", [1, 1])], nodes=[node], initializers=[weight, bias], opset_imports={"": 21}, name="g"
    )
    codes = dict.fromkeys(("x", "out"), asymmetric_codes((0.0, 1.0), 16))
    with pytest.raises(ValueError, match="'b' is too large"):
        integer_biases(to_fixed_point(ir.Model(graph, ir_version=10), codes, 16))


def masked_model():
    """Softmax of masked scores (1, 3), as a text encoder is traced."""
    scores = ir.Value(name="scores", shape=ir.Shape([1, 3]), type=FLOAT)
    mask = initializer("mask", np.array([[0.0, 0.0, np.finfo(np.float32).min]], np.float32))
    zero = initializer("zero", np.array(0.0, np.float32))
    add = ir.node("Add", [scores, mask])
    shares = ir.node("Softmax", [named(add, "sum", [1, 3])], {"axis": -1})
    made = named(shares, "shares", [1, 3])
    test = ir.node("IsNaN", [made])
    test.outputs[0].name, test.outputs[0].type = "nan", ir.TensorType(ir.DataType.BOOL)
    where = ir.node("Where", [test.outputs[0], zero, made])
    double = ir.node("Add", [named(where, "kept", [1, 3]), named(where, "kept", [1, 3])])
    out = named(double, "out", [1, 3])
    graph = ir.Graph(
        [scores], [out], nodes=[add, shares, test, where, double], initializers=[mask, zero],
        opset_imports={"": 21}, name="g",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def test_masks_become_finite_and_still_mask():
    feeds = {"scores": np.array([[20.0, -20.0, 40.0]], np.float32)}
    made = finite_masks(masked_model())
    assert [node.op_type for node in made.graph] == ["Add", "Softmax", "Add"]
    assert made.graph.initializers["mask.finite"].const_value.numpy().tolist() == [[0, 0, MASKED]]
    assert set(made.graph.initializers) == {"mask.finite"}
    assert np.allclose(run(masked_model(), feeds), run(made, feeds), atol=1e-7)
    assert len(masked_model().graph.initializers) == 2


def test_a_constant_that_is_no_mask_stays():
    model = small_model()
    made = finite_masks(model)
    assert set(made.graph.initializers) == set(model.graph.initializers)


def angles_model():
    """The sine and cosine of a timestep (1,) times two frequencies."""
    timestep = ir.Value(name="timestep", shape=ir.Shape([1]), type=FLOAT)
    rates = initializer("rates", np.array([[1.0, 0.5]], np.float32))
    axis = initializer("axis", np.array([-1], np.int64))
    up = ir.node("Unsqueeze", [timestep, axis])
    angle = ir.node("Mul", [named(up, "column", [1, 1]), rates])
    made = named(angle, "angle", [1, 2])
    sine, cosine = ir.node("Sin", [made]), ir.node("Cos", [made])
    joined = ir.node("Concat", [named(sine, "sin", [1, 2]), named(cosine, "cos", [1, 2])], {"axis": -1})
    out = named(joined, "out", [1, 4])
    graph = ir.Graph(
        [timestep], [out], nodes=[up, angle, sine, cosine, joined], initializers=[rates, axis],
        opset_imports={"": 21}, name="g",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def test_angles_stay_in_float32_and_their_sines_are_rounded():
    model = angles_apart(angles_model())
    assert [node.op_type for node in model.graph] == ["Einsum", "Sin", "Cos", "Concat"]
    assert set(fixed_point_tensors(model)) == {"sin", "cos", "out"}
    codes = dict.fromkeys(("sin", "cos", "out"), asymmetric_codes((-1.0, 1.0), 16))
    feeds = {"timestep": np.array([999.3], np.float32)}
    angles = np.float64(np.float32(999.3)) * np.array([1.0, 0.5])
    found = run(to_fixed_point(model, codes, 16), feeds)
    assert np.allclose(found, [*np.sin(angles), *np.cos(angles)], atol=1e-4)


def test_by_how_much_a_picture_is_resized_stays_exact():
    picture = ir.Value(name="picture", shape=ir.Shape([1, 1, 2, 2]), type=FLOAT)
    scales = initializer("scales", np.array([1, 1, 2, 2], np.float32))
    node = ir.node("Resize", [picture, None, scales], {"mode": "nearest"})
    out = named(node, "out", [1, 1, 4, 4])
    graph = ir.Graph([picture], [out], nodes=[node], initializers=[scales], opset_imports={"": 21}, name="g")
    model = to_fixed_point(ir.Model(graph, ir_version=10), {"picture": (np.float32(1), np.uint8(0))}, 8)
    assert run(model, {"picture": np.array([[[[1, 2], [3, 4]]]], np.float32)})[0, 0].tolist() == [
        [1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 16}, {"wide": ("unet",)}, {"everywhere": True, "range": "dynamic"},
        {"everywhere": True, "symmetric": True}, {"everywhere": True, "timestep_groups": 2},
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValueError, match="everywhere"):
        Activations(**settings)


def test_components_may_have_wider_codes_than_the_others():
    recipe = Recipe(
        "test", "", "float32", "float32", 0.0, activations=Activations(everywhere=True, wide=("text_encoder",))
    )
    assert [recipe.activation_bits(name) for name in ("text_encoder", "unet")] == [16, 8]
    assert recipe.is_fixed_point("unet")
    assert not Recipe("test", "", "float32", "float32", 0.0, activations=Activations()).is_fixed_point("unet")
