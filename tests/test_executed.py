"""What engines compute in: small graphs whose operators are known, and what is made of the answers."""

from types import SimpleNamespace

import onnx_ir as ir
import pytest
from graphs import inputs, small_model
from test_activations import quantized

from outzoom.benchmarks import sparsity
from outzoom.benchmarks.executed import Product, Ran, compiled_to, run_by_onnxruntime, run_by_openvino, summary
from outzoom.compress.dynamic import multiply_dynamically
from outzoom.compress.packing import PackedWriter
from outzoom.compress.recipe import Int4, Recipe, Rule
from outzoom.compress.weights import compress_weights
from outzoom.runtime import UserError
from outzoom.runtime.backends import Loading
from outzoom.runtime.backends.onnxruntime import OnnxRuntime
from outzoom.runtime.backends.openvino import OpenVino


def compressed(model, folder, *rules):
    recipe = Recipe("test", "", "float32", "float32", 0.0, True, rules)
    return compress_weights(model, "unet", recipe, PackedWriter(folder / "packed.safetensors", True))[0]


def by_onnxruntime(model, folder):
    ir.save(model, folder / "model.onnx")
    backend = OnnxRuntime()
    return run_by_onnxruntime(backend, folder / "model.onnx", backend.options(Loading()), inputs())


def by_openvino(model, folder):
    ir.save(model, folder / "model.onnx")
    backend = OpenVino("CPU")
    engine = backend.compile(folder / "model.onnx", folder / "engine")
    return run_by_openvino(engine, backend.compiled(engine, Loading()))


@pytest.mark.parametrize("asked", [by_onnxruntime, by_openvino])
def test_a_graph_of_floats_computes_in_floats(asked, tmp_path):
    found = asked(small_model(), tmp_path)
    assert found.counts == {"Conv": {"float32": 1}, "MatMul": {"float32": 2}}
    assert found.sparse_layers == 0
    assert found.unmet == ()


def test_onnx_runtime_tells_which_layers_are_of_integers_and_which_were_to_be(tmp_path):
    model = compressed(quantized(outputs=True), tmp_path, Rule(operators=("Conv", "MatMul", "Gemm"), engine="int8"))
    found = by_onnxruntime(model, tmp_path)
    assert found.counts == {"Conv": {"int8": 1}, "MatMul": {"int8": 1, "float32": 1}}
    assert found.unmet == ("gemm.weight: float32, not int8",)


def test_openvino_tells_which_layers_are_of_integers(tmp_path):
    model = compressed(quantized(outputs=False), tmp_path, Rule(operators=("Conv", "MatMul"), engine="int8"))
    found = by_openvino(model, tmp_path)
    assert found.counts == {"Conv": {"int8": 1}, "MatMul": {"int8": 1, "float32": 1}}
    assert found.unmet == ()


def test_products_with_ranges_of_each_run_are_of_integers(tmp_path):
    model = compressed(small_model(), tmp_path, Rule(operators=("MatMul",), engine="int8"))
    found = by_onnxruntime(multiply_dynamically(model)[0], tmp_path)
    assert found.counts == {"Conv": {"float32": 1}, "MatMul": {"int8": 1, "float32": 1}}
    assert found.unmet == ()


@pytest.mark.parametrize("asked", [by_onnxruntime, by_openvino])
def test_weights_of_four_bits_are_told_from_computing_in_four(asked, tmp_path):
    rule = Rule(operators=("MatMul",), store=Int4(block=32), engine="int4")
    found = asked(compressed(small_model(), tmp_path, rule), tmp_path)
    assert found.counts["MatMul"] == {"int4 weights": 1, "float32": 1}
    assert found.unmet == ()


def test_openvino_keeps_no_four_bits_for_a_row_that_ends_within_a_block(tmp_path):
    """It cuts the last block with a Slice, and makes floats of the weight."""
    rule = Rule(operators=("MatMul",), store=Int4(block=64), engine="int4")  # of 32 inputs
    found = by_openvino(compressed(small_model(), tmp_path, rule), tmp_path)
    assert found.unmet == ("linear.weight: float32, not int4 weights",)


@pytest.mark.parametrize("asked", [by_onnxruntime, by_openvino])
def test_a_product_of_two_activations_is_attention(asked, tmp_path):
    model = small_model()
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    rows = product.inputs[0]
    transposed = ir.node("Transpose", [rows], {"perm": [0, 2, 1]})
    both = ir.node("MatMul", [rows, transposed.outputs[0]])
    softmax = ir.node("Softmax", [both.outputs[0]])
    weighted = ir.node("MatMul", [softmax.outputs[0], rows])
    for name, node in (("t", transposed), ("b", both), ("s", softmax), ("w", weighted)):
        node.outputs[0].name = name
    model.graph.insert_before(product, [transposed, both, softmax, weighted])
    product.replace_input_with(0, weighted.outputs[0])
    found = asked(model, tmp_path)
    assert found.counts == {"Conv": {"float32": 1}, "MatMul": {"float32": 2}, "attention": {"float32": 2}}


def test_the_summary_by_hand():
    products = [
        Product("a", "a.out", "a.weight", "Conv", "int8"),
        Product("b", "b.out", "b.weight", "Conv", "int8"),
        Product("c", "c.out", "c.weight", "MatMul", None),
        Product("d", "d.out", "d", "attention", "int8"),
    ]
    ran = {"a": Ran("int8"), "b": Ran("float32"), "c": Ran("int8", sparse=True)}
    found = summary(products, ran)
    assert found.counts == {"Conv": {"int8": 1, "float32": 1}, "MatMul": {"int8": 1}, "attention": {"unknown": 1}}
    assert found.sparse_layers == 1
    assert found.unmet == ("b.weight: float32, not int8", "d: unknown, not int8")


def operator(name, **info):
    words = {key: SimpleNamespace(astype=lambda kind, value=value: kind(value)) for key, value in info.items()}
    return SimpleNamespace(get_rt_info=lambda: words, get_friendly_name=lambda: name)


def test_openvinos_primitives_by_hand():
    """Its runtime precision is the widest of the inputs', int8 for weights alone; its name ends with the data's."""
    products = [Product(name, f"{name}.sum", name, "MatMul", None) for name in "abcdef"]
    found = [
        ("a", "FullyConnected", "brgemm_avx512_amx_I8", "u8"),
        ("b.sum,gelu", "FullyConnected", "brgemm_avx512_amx_bf16", "i8"),
        ("c,Multiply_1", "FullyConnected", "brgemm_avx512_amx_bf16", "bf16"),
        ("x,d", "FullyConnected", "brgemm_avx512_amx_sparse_I8", "u8"),
        ("f,f/DequantizationMultiply,Add_2", "MatMul", "brgemm_avx512_i8", "i8"),
        ("e", "Reorder", "reorder_f32", "f32"),  # moves what e makes, and computes nothing
    ]
    operators = []
    for names, kind, primitive, precision in found:
        name, _, originals = names.partition(",")
        words = {"layerType": kind, "primitiveType": primitive, "runtimePrecision": precision}
        operators.append(operator(name, originalLayersNames=originals, **words))
    assert compiled_to(products, SimpleNamespace(get_ops=lambda: operators)) == {
        "a": Ran("int8"),
        "b": Ran("int8 weights"),
        "c": Ran("bfloat16"),
        "d": Ran("int8", sparse=True),
        "f": Ran("int8"),
    }


def test_weights_of_eight_bits_alone_become_floats_in_openvino(tmp_path):
    model = compressed(small_model(), tmp_path, Rule(operators=("MatMul",), engine="int8"))
    assert by_openvino(model, tmp_path).counts["MatMul"] == {"int8 weights": 1, "float32": 1}


def test_dense_and_sparse_steps_are_timed_beside_each_other(tiny_bundles):
    bundle = tiny_bundles["openvino-cpu-fp32"]
    dense, sparse, with_kernels = sparsity.measured(bundle, bundle, rounds=2)
    assert dense.ratio_to_dense["median"] == 1
    assert sparse.ratio_to_dense["median"] > 0
    assert (dense.options, sparse.options) == ({}, {})
    assert with_kernels.options == sparsity.KERNELS
    assert with_kernels.executed.sparse_layers == 0  # its weights have no zeros
    assert {step.latency.run_count for step in (dense, sparse, with_kernels)} == {2}


def test_sparse_steps_of_another_engine_are_refused(tiny_bundles):
    with pytest.raises(UserError, match="is for onnxruntime"):
        sparsity.measured(tiny_bundles["onnxruntime-fp32"], tiny_bundles["onnxruntime-fp32"], rounds=1)
