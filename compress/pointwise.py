"""1x1 convolutions as products of matrices: engines can compute those from four bits."""

from __future__ import annotations

import onnx_ir as ir

from .cast import derived
from .layers import MIN_ELEMENTS, TRANSPOSED

ROWS = (0, 2, 3, 1)  # a picture (n, channels, height, width) as rows of channels
PICTURE = (0, 3, 1, 2)  # and back
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def pointwise_as_products(model: ir.Model) -> ir.Model:
    """A copy of `model` with a MatMul in place of each 1x1 convolution of stride 1 that has a weight of its own."""
    model = model.clone()
    for node in list(model.graph):
        if _is_pointwise(node):
            _replace(model, node)
    return model


def _is_pointwise(node: ir.Node) -> bool:
    weight = node.inputs[1].const_value if node.op_type == "Conv" and node.inputs[1] is not None else None
    if weight is None or weight.size < MIN_ELEMENTS or tuple(weight.shape.numpy()[2:]) != (1, 1):
        return False
    attributes = node.attributes
    strides = attributes["strides"].as_ints() if "strides" in attributes else (1, 1)
    pads = attributes["pads"].as_ints() if "pads" in attributes else (0, 0, 0, 0)
    groups = attributes["group"].as_int() if "group" in attributes else 1
    return all(stride == 1 for stride in strides) and not any(pads) and groups == 1


def _replace(model: ir.Model, node: ir.Node) -> None:
    picture, weight, *bias = node.inputs
    assert picture is not None
    assert weight is not None
    rows = _node("Transpose", picture, name=f"{node.outputs[0].name}.rows", perm=ROWS)
    product = _node("MatMul", rows, _matrix(model, weight), name=f"{node.outputs[0].name}.product")
    added = [_node("Add", product, one, name=f"{node.outputs[0].name}.sum") for one in bias if one is not None]
    back = _node("Transpose", [product, *added][-1], name=str(node.outputs[0].name), perm=PICTURE)
    _shape(picture, rows, product, *added, channels=weight)
    back.shape = node.outputs[0].shape
    made = [value.producer() for value in (rows, product, *added, back)]
    model.graph.insert_before(node, [one for one in made if one is not None])
    ir.convenience.replace_all_uses_with(node.outputs[0], back, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    if not weight.uses():
        del model.graph.initializers[str(weight.name)]


def _node(kind: str, *inputs: ir.Value, name: str, perm: tuple[int, ...] | None = None) -> ir.Value:
    """The output of a new node."""
    made = ir.node(kind, list(inputs), {"perm": list(perm)} if perm else {}).outputs[0]
    made.name, made.type = name, FLOAT
    return made


def _shape(picture: ir.Value, rows: ir.Value, *products: ir.Value, channels: ir.Value) -> None:
    """Give what lies between the transposes its shape, as far as the picture's is known."""
    if picture.shape is None or channels.shape is None:
        return
    sides = [picture.shape[axis] for axis in ROWS]
    rows.shape = ir.Shape(sides)
    for value in products:
        value.shape = ir.Shape([*sides[:3], channels.shape[0]])


def _matrix(model: ir.Model, value: ir.Value) -> ir.Value:
    """The weight (outputs, inputs, 1, 1) of a convolution as (inputs, outputs), turned when it is read."""
    weight = value.const_value
    assert weight is not None
    outputs, inputs = weight.shape.numpy()[:2]
    return derived(model, weight, f"{value.name}{TRANSPOSED}10", lambda array: array[:, :, 0, 0].T, (inputs, outputs))
