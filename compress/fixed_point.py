"""Every tensor of a graph in whole codes, for processors that compute in fixed point, such as Qualcomm's HTP.

Where `activations` rounds what flows into chosen layers, here all is rounded that goes from an operator to the next,
and every constant: between a QuantizeLinear and the DequantizeLinear after it such a processor has the codes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .activations import Codes, asymmetric_codes, round_value, unsigned
from .angles import ANGLES, leading_to_angles
from .cast import initializer
from .dequantize import dequantize_weight
from .layers import find_layers
from .weights import in_steps, row_scales

# What these make are values that they take, so that both have the same codes and none is rounded twice.
MOVES = frozenset(
    {"Expand", "Flatten", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
WITH_BIAS = frozenset({"Conv", "Gemm"})


def fixed_point_tensors(model: ir.Model) -> dict[str, int]:
    """The tensors whose ranges `to_fixed_point` asks for, and the axis of each that counts channels."""
    found = {}
    for value in _rounded(model):
        origin = _origin(value)
        if origin is value and not _fixed_codes(value, 8):
            found[str(value.name)] = 1 if value.shape is not None and len(value.shape) == 4 else -1
    return found


def second_factors(model: ir.Model) -> set[str]:
    """The tensors that products of two activations take second; HTP multiplies in 16 bits only if these are centred."""
    products = (node for node in model.graph if node.op_type == "MatMul")
    factors = (node.inputs[1] for node in products)
    return {str(_origin(value).name) for value in factors if value is not None and not value.is_initializer()}


def to_fixed_point(model: ir.Model, codes: Mapping[str, Codes], bits: int) -> ir.Model:
    """A copy of `model` with all tensors but the weights of large layers rounded to unsigned codes of `bits` bits.

    `codes` are those of the tensors that `fixed_point_tensors` names. Those weights are left to whoever compresses
    them, and biases to `integer_biases`, which comes after that. Integers and angles stay as they are.
    """
    model = model.clone()
    constants = _constant_codes(model, bits)
    known = {**codes, **{name: one for name, (one, _) in constants.items()}}
    origins = {value: _origin(value) for value in _rounded(model)}
    chosen = {value: _fixed_codes(origin, bits) or known[str(origin.name)] for value, origin in origins.items()}
    for value, one in chosen.items():
        uses = list(value.uses())
        rounded = round_value(model, value, [one])
        for use in uses:
            use.node.replace_input_with(use.idx, rounded)
        if value.is_graph_output():
            _take_place(model, value, rounded)
    for name, (one, array) in constants.items():
        _replace_constant(model, model.graph.initializers[name], one, array)
    _quantize_small_layers(model)
    return model


def integer_biases(model: ir.Model) -> ir.Model:
    """A copy of `model` with biases in 32 bits where both factors are in whole codes: in steps of both's steps.

    Raises ValueError for a bias that is too large for that.
    """
    model = model.clone()
    for node in list(model.graph):
        bias = node.inputs[2] if node.op_type in WITH_BIAS and len(node.inputs) > 2 else None
        scales = [_constant_scale(value) for value in node.inputs[:2]]
        if bias is None or bias.const_value is None or scales[0] is None or scales[1] is None:
            continue
        array = bias.const_value.numpy().astype(np.float64)
        steps = np.broadcast_to(scales[0] * scales[1], array.shape).astype(np.float32)
        if np.abs(array / steps).max() > np.iinfo(np.int32).max:
            raise ValueError(f"the bias '{bias.name}' is too large for 32 bits in steps of its layer's factors")
        counted = np.rint(array / steps).astype(np.int32)
        name = f"{bias.name}.{node.outputs[0].name}"
        stored = initializer(model, ir.tensor(counted, name=f"{name}.steps"))
        scale = initializer(model, ir.tensor(steps, name=f"{name}.scale"))
        dequantized = ir.node("DequantizeLinear", [stored, scale], {"axis": 0})
        result = dequantized.outputs[0]
        result.name, result.shape, result.type = name, bias.shape, ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(node, dequantized)
        node.replace_input_with(2, result)
        if not bias.uses():
            del model.graph.initializers[str(bias.name)]
    return model


def _rounded(model: ir.Model) -> Iterator[ir.Value]:
    """The float tensors that are given to the graph or made in it, but for angles, of which their sines are rounded."""
    angles = leading_to_angles(model)
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT and not all(use.node in angles for use in value.uses()):
            yield value
    for node in model.graph:
        if node not in angles or node.op_type in ANGLES:
            yield from (value for value in node.outputs if value.dtype == ir.DataType.FLOAT and value.name)


def _origin(value: ir.Value) -> ir.Value:
    """The tensor whose values these are, before they were moved about."""
    while (node := value.producer()) is not None and node.op_type in (*MOVES, "Gather"):
        source = node.inputs[0]
        assert source is not None  # the first input of these is not optional
        value = source
    return value


def _fixed_codes(value: ir.Value, bits: int) -> Codes | None:
    """The codes of a tensor that HTP computes for no others."""
    node = value.producer()
    return (np.float32(2.0**-bits), unsigned(bits)(0)) if node is not None and node.op_type == "Sigmoid" else None


def _constant_codes(model: ir.Model, bits: int) -> dict[str, tuple[Codes, NDArray[np.float32]]]:
    """Codes and values of the constants that are no layer's weight or bias, by name."""
    angles, weights = leading_to_angles(model), {layer.value for layer in find_layers(model) if layer.op_type in LAYERS}
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value in weights:
            continue
        if all(use.node in angles or _stays(use.node, use.idx) for use in value.uses()):
            continue
        array = tensor.numpy()
        found[name] = asymmetric_codes((min(float(array.min()), 0.0), max(float(array.max()), 0.0)), bits), array
    return found


def _stays(node: ir.Node, position: int) -> bool:
    """Whether a constant is used as the weight or the bias of a layer, or says by how much a picture is resized."""
    of_layer = (node.op_type in LAYERS and position == 1) or (node.op_type in WITH_BIAS and position == 2)
    return of_layer or (node.op_type == "Resize" and position > 0)


def _replace_constant(model: ir.Model, value: ir.Value, codes: Codes, array: NDArray[np.float32]) -> None:
    """Let what uses a constant, but where it stays, use its codes behind a DequantizeLinear."""
    scale, zero_point = codes
    most = np.iinfo(zero_point.dtype).max
    stored = np.clip(np.rint(array / scale) + zero_point, 0, most).astype(zero_point.dtype)
    parts: dict[str, NDArray[Any]] = {"codes": stored, "scale": np.asarray(scale), "zero_point": np.asarray(zero_point)}
    inputs = [initializer(model, ir.tensor(part, name=f"{value.name}.{kind}")) for kind, part in parts.items()]
    node = ir.node("DequantizeLinear", inputs)
    result = node.outputs[0]
    result.name, result.shape, result.type = f"{value.name}.constant", value.shape, ir.TensorType(ir.DataType.FLOAT)
    for use in list(value.uses()):
        if not _stays(use.node, use.idx):
            use.node.replace_input_with(use.idx, result)
    model.graph.insert_before(model.graph[0], node)
    if not value.uses():
        del model.graph.initializers[str(value.name)]


def _quantize_small_layers(model: ir.Model) -> None:
    """Give the layers that are too small to be compressed weights of eight bits."""
    compressed = {layer.value for layer in find_layers(model)}
    for layer in find_layers(model, least=1):
        if layer.value not in compressed and layer.op_type in LAYERS:
            matrix = layer.matrix()
            scales = row_scales(matrix)
            weight = ir.tensor(layer.tensor(in_steps(matrix, scales)), name=f"{layer.value.name}.int8")
            dequantize_weight(model, layer.value, weight, scales, layer.permutation.index(0))


def _constant_scale(value: ir.Value | None) -> NDArray[np.float32] | None:
    """The scale of a tensor that a DequantizeLinear makes."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale = node.inputs[1]
    return scale.const_value.numpy() if scale is not None and scale.const_value is not None else None


def _take_place(model: ir.Model, value: ir.Value, rounded: ir.Value) -> None:
    """Let the graph put out a rounded tensor in place of the exact one, under its name."""
    name = value.name
    value.name, rounded.name = f"{name}.exact", name
    model.graph.outputs[list(model.graph.outputs).index(value)] = rounded
