"""The graph of an ONNX file. Weights are not read: they need not even be there.

The package `onnx` reads the file, since its format is a protobuf of its own; it is needed where graphs are looked at,
not on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import MissingPackageError, UserError
from .graph import MAX_GRAPH_BYTES, MAX_NODES, MAX_TENSOR_ELEMENTS, Graph, Node, Tensor

# Bits, and whether it is a float, by the number of ONNX's element type.
ELEMENT_TYPES = {
    1: (32, True), 2: (8, False), 3: (8, False), 4: (16, False), 5: (16, False), 6: (32, False), 7: (64, False),
    9: (8, False), 10: (16, True), 11: (64, True), 12: (32, False), 13: (64, False), 16: (16, True),
    17: (8, True), 19: (8, True), 21: (4, False), 22: (4, False),
}  # fmt: skip
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Squeeze", "Unsqueeze", "Reshape")  # that sides are made with
SAME_SHAPE = ("QuantizeLinear", "DequantizeLinear", "Cast")  # what passes leave without a shape
ATTRIBUTES = ("group", "strides", "transA", "transB", "K", "N", "bits", "to")


def read_onnx(file: Path, sides: Mapping[str, int]) -> Graph:
    """The graph of `file`, its named dimensions set to the numbers in `sides`.

    Raises UserError for what is no ONNX file, is too large, or leaves a shape open; MissingPackageError without `onnx`.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError("onnx", "export", "reading an ONNX graph") from error

    try:
        size = file.stat().st_size
        if size > MAX_GRAPH_BYTES:
            message = f"the graph '{file}' has {size} bytes; at most {MAX_GRAPH_BYTES} are read"
            raise UserError(message, hint="save it with its weights as external data")
        model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise UserError(f"the graph '{file}' can't be read: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:  # protobuf's own types
        raise UserError(f"'{file}' is no ONNX file: {error}", hint="give a model.onnx, or a bundle") from error
    if not 0 < len(model.graph.node) <= MAX_NODES:
        raise UserError(f"the graph '{file}' has {len(model.graph.node)} nodes; 1 to {MAX_NODES} are read")
    if _name_sides(model.graph, sides) or not model.graph.value_info:
        model = _with_shapes(onnx, model, file)
    nodes = tuple(_nodes(model.graph))
    return Graph(str(file), nodes, _tensors(model.graph, nodes, file))


def _name_sides(graph: Any, sides: Mapping[str, int]) -> bool:
    """Set the named dimensions of inputs; whether there were any."""
    named = False
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                named = True
                if dimension.dim_param in sides:
                    dimension.dim_value = sides[dimension.dim_param]
    return named


def _with_shapes(onnx: Any, model: Any, file: Path) -> Any:
    """The model with all shapes worked out again from its inputs'.

    An identity, which has the same shape, stands in for group normalization: onnx does not infer through that.
    """
    sketch = onnx.ModelProto()
    sketch.CopyFrom(model)
    del sketch.graph.value_info[:]
    _fold_sides(onnx, sketch.graph)
    for value in sketch.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in sketch.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(sketch, data_prop=True)
    except Exception as error:
        raise UserError(f"the shapes in '{file}' can't be worked out: {error}") from error
    del model.graph.value_info[:], model.graph.output[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    model.graph.output.extend(inferred.graph.output)
    return model


def _fold_sides(onnx: Any, graph: Any) -> None:
    """Compute what is made of the sides of inputs: onnx propagates shapes, but does not divide them."""
    from onnx.reference import ReferenceEvaluator

    sides = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.input}
    known = {
        stored.name: onnx.numpy_helper.to_array(stored)
        for stored in graph.initializer
        if stored.data_type == onnx.TensorProto.INT64 and stored.data_location != onnx.TensorProto.EXTERNAL
    }
    for node in list(graph.node):
        if node.op_type == "Shape" and all(sides.get(node.input[0], (0,))):
            bounds = {each.name: each.i for each in node.attribute}
            made = np.asarray(sides[node.input[0]][bounds.get("start", 0) : bounds.get("end")], np.int64)
        elif node.op_type in ARITHMETIC and all(name in known for name in node.input):
            (made,) = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input})
        else:
            continue
        known[node.output[0]] = made
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(made), node.output[0]))
        graph.node.remove(node)


def _nodes(graph: Any) -> Iterator[Node]:
    for index, node in enumerate(graph.node):
        attributes = {each.name: tuple(each.ints) or (each.i,) for each in node.attribute if each.name in ATTRIBUTES}
        name = node.name or f"{node.op_type}_{index}"
        yield Node(name, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _tensors(graph: Any, nodes: tuple[Node, ...], file: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        sides = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
        tensors[value.name] = _tensor(value.name, sides, kind.elem_type, False, file)
    for stored in graph.initializer:
        tensors[stored.name] = _tensor(stored.name, tuple(stored.dims), stored.data_type, True, file)
    for node in nodes:
        known = tensors.get(node.inputs[0]) if node.op in SAME_SHAPE and node.inputs else None
        if known is None:
            continue
        bits, is_float = known.bits, known.is_float
        if node.op == "QuantizeLinear":
            zero = tensors.get(node.inputs[2]) if len(node.inputs) > 2 else None
            bits, is_float = (zero.bits if zero else 8), False
        elif node.op == "Cast":
            bits, is_float = ELEMENT_TYPES.get(node.attribute("to"), (bits, is_float))
        else:
            bits, is_float = 32, True
        tensors.setdefault(node.outputs[0], Tensor(known.shape, bits, is_float))
    return tensors


def _tensor(name: str, shape: tuple[int, ...], element_type: int, is_constant: bool, file: Path) -> Tensor:
    if math.prod(max(side, 1) for side in shape) > MAX_TENSOR_ELEMENTS:
        raise UserError(f"the tensor '{name}' in '{file}' has the shape {shape}: that is too large")
    return Tensor(shape, *ELEMENT_TYPES.get(element_type, (32, False)), is_constant)
