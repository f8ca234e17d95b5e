"""Activations of eight bits: QuantizeLinear and DequantizeLinear before what an engine then computes in integers.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (arXiv 1712.05877), section 2; the pattern of operators is ONNX's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .cast import initializer, insert_after
from .layers import ROUNDED, find_layers
from .ranges import INT8_MAX, Range, levels

TIMESTEP = "timestep"  # the input of the UNet
SMALLEST_RANGE = 1e-12  # of a tensor that is always zero


Codes = tuple[np.float32, np.uint8 | np.int8 | np.uint16]  # scale and zero point of a range
Quantized = Callable[[str, str], bool]  # whether a layer, by its operator and weight's name, computes in integers


def activations(model: ir.Model, quantized: Quantized, products: bool, outputs: bool) -> dict[str, int]:
    """The tensors that `quantize_activations` rounds, and the axis of each that counts channels.

    `products` asks for those of two activations, as in attention, too; `outputs` for what convolutions make.
    """
    found: dict[str, int] = {}
    for node in _nodes(model, quantized, products):
        for value in _inputs(node):
            found[str(value.name)] = 1 if node.op_type == "Conv" else -1
    for value in _outputs(model, quantized) if outputs else ():
        found.setdefault(str(value.name), 1)
    return found


def product_factors(model: ir.Model) -> set[str]:
    """The tensors that are multiplied by each other, as in attention."""
    products = (node for node in model.graph if node.op_type == "MatMul" and len(_inputs(node)) == 2)
    return {str(value.name) for node in products for value in _inputs(node)}


def convolved(model: ir.Model) -> set[str]:
    """The tensors that flow into convolutions of more than one pixel."""
    found: set[str] = set()
    for node in model.graph:
        kernel = node.inputs[1].shape if node.op_type == "Conv" and node.inputs[1] is not None else None
        if kernel is not None and any(side != 1 for side in kernel[2:]):
            found |= {str(value.name) for value in _inputs(node)}
    return found


def quantize_activations(
    model: ir.Model, codes: Mapping[str, Sequence[Codes]], quantized: Quantized, products: bool, outputs: bool,
    boundaries: Sequence[float] = (),
) -> ir.Model:  # fmt: skip
    """A copy of `model` with the tensors that `activations` names rounded to whole codes.

    A tensor has one scale and zero point, or with `boundaries`, ascending, one for each part of the schedule that they
    divide: the first for timesteps below the first of them. Weights are left as they are: it is for whoever compresses
    them to make them eight bits as well.
    """
    model = model.clone()
    group = _group(model, boundaries) if boundaries else None
    rounded: dict[ir.Value, ir.Value] = {}
    for value in _outputs(model, quantized) if outputs else ():
        uses = list(value.uses())
        rounded[value] = round_value(model, value, codes[str(value.name)], group)
        for use in uses:
            use.node.replace_input_with(use.idx, rounded[value])
    made = set(rounded.values())
    for node in list(_nodes(model, quantized, products)):
        for position, source in enumerate(node.inputs):
            if source is not None and source in _inputs(node) and source not in made:
                if source not in rounded:
                    rounded[source] = round_value(model, source, codes[str(source.name)], group)
                node.replace_input_with(position, rounded[source])
        if node.op_type == "MatMul":
            _keep_bias_apart(model, node)
    return model


def asymmetric_codes(ends: Range, bits: int = 8) -> Codes:
    """Scale and zero point by which unsigned codes of 8 or 16 bits cover a range that holds 0.

    value = (code - zero point) * scale
    """
    low, high = ends
    scale = np.float32(max(high - low, SMALLEST_RANGE) / levels(bits))
    return scale, unsigned(bits)(np.clip(round(-low / float(scale)), 0, levels(bits)))


def unsigned(bits: int) -> type[np.uint8] | type[np.uint16]:
    """The type of unsigned codes of 8 or 16 bits."""
    return np.uint16 if bits == 16 else np.uint8


def symmetric_codes(ends: Range) -> tuple[np.float32, np.int8]:
    """Scale and zero point, 0, by which -127..127 cover a range around 0: value = code * scale."""
    return np.float32(max(-ends[0], ends[1], SMALLEST_RANGE) / INT8_MAX), np.int8(0)


def unsigned_symmetric_codes(ends: Range, bits: int = 8) -> Codes:
    """The same steps as those of `symmetric_codes`, counted from 128; or of 16 bits, counted from 32768.

    ONNX Runtime makes these of those by itself, but not where several layers share a tensor: on x86 they then compute
    in float, as half of the demo UNet's linear layers did.
    """
    middle = (levels(bits) + 1) // 2
    return np.float32(max(-ends[0], ends[1], SMALLEST_RANGE) / (middle - 1)), unsigned(bits)(middle)


def _group(model: ir.Model, boundaries: Sequence[float]) -> ir.Value:
    """The number of the part of the schedule that the timestep is in: how many boundaries it has reached."""
    (timestep,) = (value for value in model.graph.inputs if value.name == TIMESTEP)
    bounds = initializer(model, ir.tensor(np.array(boundaries, np.float32), name="timestep.boundaries"))
    axes = initializer(model, ir.tensor(np.array([0], np.int64), name="timestep.axes"))
    reached = ir.node("GreaterOrEqual", [timestep, bounds])
    counted = ir.node("Cast", reached.outputs, {"to": ir.DataType.INT64.value})
    group = ir.node("ReduceSum", [counted.outputs[0], axes], {"keepdims": 0})
    for node, name in ((reached, "reached"), (counted, "counted"), (group, "group")):
        node.outputs[0].name = f"timestep.{name}"
    model.graph.insert_before(model.graph[0], [reached, counted, group])
    return group.outputs[0]


def round_value(model: ir.Model, value: ir.Value, codes: Sequence[Codes], group: ir.Value | None = None) -> ir.Value:
    """What a tensor is after it was rounded; the two nodes stand right after the one that makes it.

    `codes` are a scale and a zero point, or one for each part of the schedule, of which `group` is the number.
    """
    parameters = []
    for kind, numbers in zip(("scale", "zero_point"), zip(*codes, strict=True), strict=True):
        table = np.asarray(numbers[0]) if group is None else np.array(numbers)
        parameter = initializer(model, ir.tensor(table, name=f"{value.name}.{kind}"))
        parameters.append(parameter if group is None else _entry(model, parameter, group))
    quantize = ir.node("QuantizeLinear", [value, *parameters])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters])
    quantize.outputs[0].name, dequantize.outputs[0].name = f"{value.name}.codes", f"{value.name}{ROUNDED}"
    dequantize.outputs[0].shape, dequantize.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    # entries of tables are taken before all else
    insert_after(model, value if value.producer() else parameters[0], quantize, dequantize)
    return dequantize.outputs[0]


def _entry(model: ir.Model, table: ir.Value, group: ir.Value) -> ir.Value:
    """The entry of a table for the part of the schedule; it is taken early, or engines would not fuse what uses it."""
    node = ir.node("Gather", [table, group])
    node.outputs[0].name = f"{table.name}.now"
    insert_after(model, group, node)
    return node.outputs[0]


def _keep_bias_apart(model: ir.Model, product: ir.Node) -> None:
    """Give the bias that is added to a product as many axes as the product has.

    ONNX Runtime makes one float Gemm of a product and a bias of one axis, before it looks for what it can compute in
    integers: half of the demo UNet's products were, which took twice the time.
    """
    rank = len(product.outputs[0].shape or ())
    for use in product.outputs[0].uses():
        for position, bias in enumerate(use.node.inputs):
            tensor = bias.const_value if bias is not None and bias.is_initializer() else None
            if use.node.op_type == "Add" and tensor is not None and len(tensor.shape) == 1 < rank - 1:
                name = f"{tensor.name}.axes{rank}"
                if name not in model.graph.initializers:
                    reshaped = tensor.numpy().reshape((1,) * (rank - 1) + (-1,))
                    initializer(model, ir.tensor(reshaped, name=name))
                use.node.replace_input_with(position, model.graph.initializers[name])
                if bias is not None and not bias.uses():
                    del model.graph.initializers[str(bias.name)]


def _nodes(model: ir.Model, quantized: Quantized, products: bool) -> Iterator[ir.Node]:
    """The nodes whose inputs are rounded: those of quantized layers, and with `products` those of two activations."""
    names = {layer.value: layer.name for layer in find_layers(model)}
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul", "Gemm") and (weight := node.inputs[1]) is not None:
            of_layer = weight in names and quantized(node.op_type, names[weight])
            if of_layer or (products and node.op_type == "MatMul" and len(_inputs(node)) == 2):
                yield node


def _inputs(node: ir.Node) -> list[ir.Value]:
    """Those of a product's two factors that are activations."""
    return [value for value in node.inputs[:2] if value is not None and not value.is_initializer()]


def _outputs(model: ir.Model, quantized: Quantized) -> list[ir.Value]:
    """What convolutions make, unless it leaves the graph."""
    made = [node.outputs[0] for node in _nodes(model, quantized, False) if node.op_type == "Conv"]
    return [value for value in made if not value.is_graph_output()]
