"""Graphs to layers: multiplications, bytes and types, by hand, beside torch's counter, and of the full-size model."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from outzoom.hardware import Workload, bundle_workload, conv_fractions, graph_workload, macs_by_kind, with_floats
from outzoom.hardware.bundles import read_graph
from outzoom.hardware.full_size import RECIPES, full_size, read_workload, write_workload
from outzoom.hardware.lower import layers_of
from outzoom.runtime import open_manifest
from outzoom.runtime.errors import UserError

GIGA = 1e9


def save(folder, nodes, inputs, outputs, initializers=(), shapes=None):
    """A model of opset 21 from nodes, and float32 inputs and outputs by name and shape; its file."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in each.items()]
        for each in (inputs, outputs, shapes or {})
    ]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in initializers]
    graph = helper.make_graph(nodes, "g", values[0], values[1], stored, value_info=values[2])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "model.onnx")
    return folder / "model.onnx"


def layers(file, **sides):
    return layers_of(read_graph(file, sides))


def test_a_strided_convolution_by_hand(tmp_path):
    node = helper.make_node("Conv", ["x", "w.weight", "b"], ["y"], name="c", strides=[2, 2], pads=[1, 1, 1, 1])
    weight = np.zeros((6, 4, 3, 3), np.float32)
    file = save(
        tmp_path, [node], {"x": (1, 4, 8, 10)}, {"y": (1, 6, 4, 5)}, [("w.weight", weight), ("b", weight[:, 0, 0, 0])]
    )
    (layer,) = layers(file)
    assert (layer.name, layer.kind, layer.stride) == ("w", "conv", 2)
    assert layer.macs == 6 * 4 * 3 * 3 * 4 * 5
    assert (layer.input_bytes, layer.weight_bytes, layer.output_bytes) == (4 * 320, 4 * 216, 4 * 120)


def test_a_depthwise_convolution_multiplies_each_channel_with_its_own_kernel(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 1, 1, 1])
    file = save(tmp_path, [node], {"x": (1, 4, 5, 5)}, {"y": (1, 4, 5, 5)}, [("w", np.zeros((4, 1, 3, 3), np.float32))])
    (layer,) = layers(file)
    assert (layer.kind, layer.groups, layer.macs) == ("depthwise", 4, 4 * 9 * 25)
    assert (layer.input_elements, layer.weight_elements) == (100, 36)


def test_a_linear_layer_takes_its_bias_in_and_a_residual_sum_is_a_layer_of_its_own(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="p"),
        helper.make_node("Add", ["product", "b"], ["biased"]),
        helper.make_node("Add", ["biased", "x"], ["y"], name="residual"),
    ]
    stored = [("w", np.zeros((8, 8), np.float32)), ("b", np.zeros(8, np.float32))]
    product, residual = layers(save(tmp_path, nodes, {"x": (1, 3, 8)}, {"y": (1, 3, 8)}, stored))
    assert (product.kind, product.batch, product.out_height, product.macs) == ("linear", 1, 3, 3 * 8 * 8)
    assert (residual.kind, residual.operands, residual.macs) == ("elementwise", 2, 0)
    assert residual.input_bytes == 2 * residual.output_bytes == 2 * 4 * 24


def test_attention_has_weights_of_its_own_in_every_head(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["y"]),
    ]
    inputs = {"q": (1, 2, 6, 4), "k": (1, 2, 4, 5), "v": (1, 2, 5, 4)}
    first, softmax, second = layers(save(tmp_path, nodes, inputs, {"y": (1, 2, 6, 4)}))
    assert (first.kind, first.batch, first.macs) == ("attention", 2, 2 * 6 * 4 * 5)
    assert (first.input_elements, first.weight_elements, first.output_elements) == (48, 40, 60)
    assert (softmax.kind, softmax.output_elements, second.macs) == ("softmax", 60, 2 * 6 * 5 * 4)


def test_codes_decide_what_a_layer_computes_in(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x.codes"]),
        helper.make_node("DequantizeLinear", ["x.codes", "s", "z"], ["x.rounded"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["w.float"]),
        helper.make_node("MatMul", ["x.rounded", "w.float"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "s", "z"], ["y.codes"]),
        helper.make_node("DequantizeLinear", ["y.codes", "s", "z"], ["y"]),
    ]
    stored = [("s", np.float32(1)), ("z", np.uint8(0)), ("w", np.zeros((4, 2), np.int8))]
    stored = [(name, np.asarray(value)) for name, value in stored]
    (layer,) = layers(save(tmp_path, nodes, {"x": (3, 4)}, {"y": (3, 2)}, stored))
    assert (layer.input_bits, layer.weight_bits, layer.output_bits) == (8, 8, 8)
    assert (layer.data_type, layer.input_bytes, layer.weight_bytes, layer.output_bytes) == ("int8", 12, 8, 6)


def test_a_product_of_codes_with_floats_is_computed_in_the_floats():
    base = full_size().components["unet"][10]
    types = {(8, 8): "int8", (8, 32): "float32", (32, 4): "float32", (16, 8): "float16", (8, 4): "int8"}
    for (input_bits, weight_bits), expected in types.items():
        assert replace(base, input_bits=input_bits, weight_bits=weight_bits).data_type == expected


def test_swish_is_one_function(tmp_path):
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    assert [layer.kind for layer in layers(save(tmp_path, nodes, {"x": (4,)}, {"y": (4,)}))] == ["elementwise"]


def test_named_sides_are_set_and_followed_through_the_graph(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GroupNormalization", ["c", "one", "one"], ["n"], num_groups=2),
        helper.make_node("Conv", ["n", "v"], ["y"], name="d"),
    ]
    stored = [("w", np.zeros((4, 2, 3, 3))), ("v", np.zeros((1, 4, 1, 1))), ("one", np.ones(4))]
    file = save(
        tmp_path, nodes, {"x": (1, 2, "height", "width")}, {"y": (1, 1, "h", "w")},
        [(name, array.astype(np.float32)) for name, array in stored],
    )  # fmt: skip
    first, _, last = layers(file, height=8, width=12)
    assert (first.out_height, first.out_width, last.macs) == (4, 6, 4 * 24)
    with pytest.raises(UserError, match="open"):
        layers(file)


def test_an_operator_that_might_hide_multiplications_is_refused(tmp_path):
    file = save(
        tmp_path, [helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,kj->ik")], {"x": (2, 2)}, {"y": (2, 2)}
    )
    with pytest.raises(UserError, match="Einsum"):
        layers(file)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.onnx", b"", "nodes"),
        ("model.onnx", b"\xff" * 40, "no ONNX file"),
        ("model.xml", b"<net><layers>", "no OpenVINO model"),
        ("model.xml", b"<net/>", "0 layers"),
        ("model.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><net/>', "document type"),
        ("model.plan", b"", "no graph"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_graph(tmp_path / name, {})


def test_a_graph_that_is_not_there_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        read_graph(tmp_path / "model.onnx", {})


def test_a_shape_too_large_for_any_memory_is_refused(tmp_path):
    file = save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {"x": (2**20, 2**20)}, {"y": (2**20, 2**20)})
    with pytest.raises(UserError, match="too large"):
        layers(file)


def test_the_same_checkpoint_has_the_same_layers_on_every_target(tiny_bundles):
    kinds = {}
    for name, path in tiny_bundles.items():
        workload = bundle_workload(open_manifest(path))
        kinds[name] = {
            part: sorted(
                (each.kind, each.macs, each.input_bytes, each.output_bytes) for each in found if each.is_product
            )
            for part, found in workload.components.items()
        }
    assert kinds["onnxruntime-fp32"] == kinds["openvino-cpu-fp32"]
    assert len(kinds["onnxruntime-fp32"]["unet"]) > 30


def test_hoisting_moves_multiplications_and_makes_none(tiny_bundles, hoisted_bundles):
    def total(path):
        return sum(layer.macs for found in bundle_workload(open_manifest(path)).components.values() for layer in found)

    assert total(hoisted_bundles["onnxruntime-fp32"]) == total(tiny_bundles["onnxruntime-fp32"])


def test_multiplications_are_those_that_torch_counts(tiny_checkpoint, tiny_skeleton):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from outzoom.export import open_checkpoint
    from outzoom.export.checkpoint import PART_OF
    from outzoom.export.components import COMPONENT_SPECS, empty_part
    from outzoom.export.shapes import Shapes, exported_shapes

    checkpoint = open_checkpoint(tiny_checkpoint)
    for component, spec in COMPONENT_SPECS.items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = spec.module(empty_part(checkpoint, PART_OF[component])).eval()
            shapes = exported_shapes(checkpoint, component, Shapes(((64, 64),), 1))
            module(*(torch.empty(shape, dtype=getattr(torch, dtype)) for shape, dtype in shapes.values()))
        found = graph_workload(tiny_skeleton(component), component).components[component]
        assert 2 * sum(layer.macs for layer in found) == counter.get_total_flops(), component


# The last digits that shared references give, counted by torch on diffusers' modules.
FULL_SIZE_GMAC = {"text_encoder": 22.56, "unet": 402.19, "vae_encoder": 558.33, "vae_decoder": 1257.26}


@pytest.mark.parametrize("component", FULL_SIZE_GMAC)
def test_full_size_stable_diffusion_2(component):
    found = sum(layer.macs for layer in full_size().components[component]) / GIGA
    assert found == pytest.approx(FULL_SIZE_GMAC[component], abs=0.005)


def test_full_size_unet_by_kind():
    found = macs_by_kind(full_size().components["unet"])
    assert found["conv"] / GIGA == pytest.approx(209.24, abs=0.005)
    assert found["linear"] / GIGA == pytest.approx(95.97 + 33.95, abs=0.01)
    assert found["attention"] / GIGA == pytest.approx(63.03, abs=0.005)


def test_how_the_articles_shares_of_convolutions_come_about():
    components = full_size().components
    unet = conv_fractions(components["unet"])
    assert unet["conv_and_linear"] == pytest.approx(0.843, abs=5e-4)  # "84%": linear layers count as 1x1 convolutions
    assert unet["conv"] == pytest.approx(0.520, abs=5e-4)
    vae = conv_fractions(components["vae_encoder"] + components["vae_decoder"])
    assert vae["conv"] == pytest.approx(0.976, abs=5e-4)  # "98%": convolutions alone, encoder and decoder together


def test_full_size_weights_take_what_the_parameters_say():
    bytes_of = full_size("fp16").weight_bytes
    unet = bytes_of["unet"] / 2
    assert 0.995 < unet / 865_925_124 <= 1  # biases and normalizations are not counted
    assert full_size("int8").weight_bytes["unet"] == pytest.approx(unet)


def test_recipes_change_types_and_never_multiplications():
    plain = full_size()
    for recipe in RECIPES:
        changed = full_size(recipe)
        assert changed.recipe == recipe
        for name, found in changed.components.items():
            assert [layer.macs for layer in found] == [layer.macs for layer in plain.components[name]]


def test_an_unknown_recipe_is_named_with_those_that_are_known():
    with pytest.raises(UserError, match=r"narrow.*kmeans4"):
        full_size("narrow")


def test_floats_become_the_devices_own(tmp_path):
    half = with_floats(full_size("int8").components["unet"], 16)
    assert {layer.input_bits for layer in half if layer.is_product} == {8}
    assert {layer.output_bits for layer in half} == {16}


def test_a_workload_survives_its_file(tmp_path):
    stored = full_size()
    few = Workload("a", "fp32", 8, 8, {"unet": stored.components["unet"][:20]})
    write_workload(few, tmp_path / "w.json")
    assert read_workload(tmp_path / "w.json") == few
    assert set(json.loads((tmp_path / "w.json").read_text())) == {"name", "width", "height", "columns", "components"}


def test_a_bundle_has_only_its_own_sizes(tiny_bundles):
    bundle = open_manifest(tiny_bundles["onnxruntime-fp32"])
    with pytest.raises(UserError, match="128x128"):
        bundle_workload(bundle, (128, 128))
