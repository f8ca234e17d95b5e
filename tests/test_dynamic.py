"""Products of integers whose activations are rounded to ranges taken in each run: the graph, and what engines do."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import CHANNELS, FLOAT, SIDE, initializer, named, run, small_model, snr_db
from test_activations import executed_operators

from outzoom.compress.dynamic import multiply_dynamically
from outzoom.compress.packing import PackedWriter
from outzoom.compress.recipe import Activations, Recipe, Rule
from outzoom.compress.weights import compress_weights


def compressed(model, folder, operators=("Conv", "MatMul", "Gemm")):
    recipe = Recipe("test", "", "float32", "float32", 0.0, True, (Rule(operators=operators, engine="int8"),))
    return compress_weights(model, "unet", recipe, PackedWriter(folder / "packed.safetensors", True))[0]


def product_model(weight):
    """rows (2, inputs) times a weight (inputs, outputs)."""
    rows = ir.Value(name="rows", shape=ir.Shape([2, len(weight)]), type=FLOAT)
    held = initializer("linear.weight.transposed10", weight)
    product = ir.node("MatMul", [rows, held])
    out = named(product, "out", [2, weight.shape[1]])
    graph = ir.Graph([rows], [out], nodes=[product], initializers=[held], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_a_product_by_hand(tmp_path):
    """Rows that reach from -1 to 254 are their own codes, less one; each column's largest weight is 127 steps."""
    weight = np.zeros((32, 32), np.float32)
    weight[0], weight[1] = 127 * 0.5, -64 * 0.5  # a step is half
    rows = np.zeros((2, 32), np.float32)
    rows[0, :3] = 254, 3, -1
    rows[1, :2] = 10.4, 100.6  # between two codes
    model, left = multiply_dynamically(compressed(product_model(weight), tmp_path))
    expected = [254 * 63.5 - 3 * 32, 10 * 63.5 - 101 * 32]
    assert np.allclose(run(model, {"rows": rows}), np.array(expected)[:, None], rtol=1e-6)
    assert left == []


def test_ranges_follow_what_flows(tmp_path):
    """Inputs a thousand times larger are rounded as finely, in proportion."""
    rng = np.random.default_rng(0)
    plain = product_model(rng.standard_normal((64, 32)).astype(np.float32))
    model, _ = multiply_dynamically(compressed(plain, tmp_path))
    rows = rng.standard_normal((2, 64)).astype(np.float32)
    for factor in (1, 1000):
        feeds = {"rows": rows * np.float32(factor)}
        assert 35 < snr_db(run(plain, feeds), run(model, feeds)) < 50


def test_only_products_of_matrices_become_integer_and_the_others_are_named(tmp_path):
    model, left = multiply_dynamically(compressed(small_model(), tmp_path))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulInteger") == kinds.count("DynamicQuantizeLinear") == 1
    assert "MatMul" not in kinds
    assert [one.layer for one in left] == ["conv.weight", "gemm.weight"]
    assert 30 < snr_db(run(small_model()), run(model)) < 60


def test_a_layer_without_an_int8_rule_stays(tmp_path):
    model, left = multiply_dynamically(compressed(small_model(), tmp_path, operators=("Conv",)))
    assert "MatMulInteger" not in [node.op_type for node in model.graph]
    assert [one.layer for one in left] == ["conv.weight"]


def test_layers_that_share_an_input_round_it_once(tmp_path):
    model = small_model()
    (add,) = (node for node in model.graph if node.op_type == "Add")
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    other = np.random.default_rng(3).standard_normal((CHANNELS, CHANNELS)).astype(np.float32)
    weight = initializer("other.weight.transposed10", other)
    model.graph.register_initializer(weight)
    second = ir.node("MatMul", [product.inputs[0], weight])
    both = ir.node("Add", [add.inputs[0], named(second, "other.out", [1, SIDE * SIDE, CHANNELS])])
    model.graph.insert_before(add, [second, both])
    add.replace_input_with(0, named(both, "both", [1, SIDE * SIDE, CHANNELS]))
    made, _ = multiply_dynamically(compressed(model, tmp_path))
    kinds = [node.op_type for node in made.graph]
    assert kinds.count("MatMulInteger") == 2
    assert kinds.count("DynamicQuantizeLinear") == 1
    assert executed_operators(made, tmp_path).count("MatMulIntegerToFloat") == 2
    assert snr_db(run(model), run(made)) > 30


def test_the_callers_model_is_not_touched(tmp_path):
    model = compressed(small_model(), tmp_path)
    nodes = [node.op_type for node in model.graph]
    multiply_dynamically(model)
    assert [node.op_type for node in model.graph] == nodes


def test_onnx_runtime_makes_one_operator_of_it(tmp_path):
    made, _ = multiply_dynamically(compressed(small_model(), tmp_path))
    operators = executed_operators(made, tmp_path)
    assert "DynamicQuantizeMatMul" in operators
    assert "MatMul" not in operators


def test_the_graph_is_valid_onnx_with_its_types_and_shapes(tmp_path):
    made, _ = multiply_dynamically(compressed(small_model(), tmp_path))
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_onnx_runtimes_own_quantizer_makes_the_same_numbers(tmp_path):
    """Its weights are rounded alike, per channel and symmetric; scales differ by float32's rounding."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rng = np.random.default_rng(0)
    model = product_model(rng.standard_normal((64, 32)).astype(np.float32))
    onnx.save(ir.to_proto(model), tmp_path / "plain.onnx")
    quantize_dynamic(
        tmp_path / "plain.onnx", tmp_path / "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": True},
    )  # fmt: skip
    theirs = ir.load(tmp_path / "theirs.onnx")
    assert "MatMulInteger" in [node.op_type for node in theirs.graph]
    ours, _ = multiply_dynamically(compressed(model, tmp_path))
    feeds = {"rows": rng.standard_normal((2, 64)).astype(np.float32)}
    assert np.allclose(run(theirs, feeds), run(ours, feeds), rtol=0, atol=1e-4)


@pytest.mark.parametrize("setting", ["symmetric", "products"])
def test_what_dynamic_ranges_can_not_do_is_refused(setting):
    with pytest.raises(ValueError, match=f"leave {setting} out"):
        Activations(range="dynamic", **{setting: True})


def test_dynamic_ranges_need_no_calibration():
    recipe = Recipe("test", "", "float16", "fastest", 0.0, True, (Rule(engine="int8"),), Activations(range="dynamic"))
    assert not recipe.needs_calibration("unet")
    assert not recipe.computes_in_integers("unet", "MatMul", "linear.weight")
    assert recipe.multiplies_dynamically("unet")
