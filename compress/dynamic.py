"""Activations of eight bits whose ranges are taken in each run: linear layers that compute in integers uncalibrated.

ONNX Runtime joins what this makes to one operator, DynamicQuantizeMatMul or, where layers share an input,
MatMulIntegerToFloat.

Source: the operator DynamicQuantizeLinear of ONNX, which rounds a tensor to the 256 even steps from its least value, or
0, to its largest.
"""

from __future__ import annotations

import onnx_ir as ir

from .cast import insert_after
from .layers import checkpoint_name
from .recipe import Left


def multiply_dynamically(model: ir.Model) -> tuple[ir.Model, list[Left]]:
    """A copy of `model` in which products with int8 weights round their other factor, and are of integers.

    The weights are those of `dequantize_weight`, with a scale for each output channel. Also the other layers that have
    such weights: they multiply them as floats.
    """
    model, left = model.clone(), []
    rounded: dict[ir.Value, ir.Node] = {}
    for node in list(model.graph):
        dequantize = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        source, weight = node.inputs[0], dequantize.inputs[0]
        if node.op_type != "MatMul" or source is None:
            name = checkpoint_name(str(weight.name if weight else "")).removesuffix(".int8")
            left.append(Left(name, f"computes in float: a {node.op_type} does not take ranges that change"))
            continue
        if source not in rounded:
            rounded[source] = _round(model, source)
        _multiply(model, node, rounded[source], dequantize)
        if not dequantize.outputs[0].uses():
            model.graph.remove(dequantize, safe=True)
    return model, left


def _round(model: ir.Model, value: ir.Value) -> ir.Node:
    """The node that makes codes, scale and zero point of a tensor, right after the one that makes the tensor."""
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
    kinds = (("codes", ir.DataType.UINT8), ("scale", ir.DataType.FLOAT), ("zero_point", ir.DataType.UINT8))
    for result, (kind, dtype) in zip(node.outputs, kinds, strict=True):
        result.name, result.type = f"{value.name}.{kind}", ir.TensorType(dtype)
        result.shape = value.shape if kind == "codes" else ir.Shape([])
    insert_after(model, value, node)
    return node


def _multiply(model: ir.Model, product: ir.Node, rounded: ir.Node, dequantize: ir.Node) -> None:
    """Put the product of codes and int8 weights, times both their scales, in the place of a product of floats."""
    codes, scale, zero_point = rounded.outputs
    weight, weight_scales = dequantize.inputs[:2]
    old = product.outputs[0]
    integers = ir.node("MatMulInteger", [codes, weight, zero_point], name=product.name)
    sums = _named(integers, f"{old.name}.integers", old.shape, ir.DataType.INT32)
    cast = ir.node("Cast", [sums], {"to": ir.DataType.FLOAT.value})
    floats = _named(cast, f"{old.name}.floats", old.shape, ir.DataType.FLOAT)
    both = ir.node("Mul", [scale, weight_scales])
    scales = _named(both, f"{old.name}.scales", weight_scales.shape if weight_scales else None, ir.DataType.FLOAT)
    scaled = ir.node("Mul", [floats, scales])
    result = _named(scaled, str(old.name), old.shape, ir.DataType.FLOAT)
    model.graph.insert_before(product, [integers, cast, both, scaled])
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    model.graph.remove(product, safe=True)


def _named(node: ir.Node, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> ir.Value:
    """The only output of a node, with a name, a shape and a type."""
    result = node.outputs[0]
    result.name, result.shape, result.type = name, shape, ir.TensorType(dtype)
    return result
