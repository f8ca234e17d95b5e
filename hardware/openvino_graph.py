"""The graph of an OpenVINO IR: an XML file that has every shape and type in it.

It is read as what it is, so that neither OpenVINO nor the weights are needed, which in a packed bundle lie in another
form beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from ..runtime.errors import UserError
from .graph import MAX_GRAPH_BYTES, MAX_NODES, MAX_TENSOR_ELEMENTS, Graph, Node, Tensor

FLOATS = ("FP32", "FP16", "BF16", "FP64", "F8E4M3", "F8E5M2")
# OpenVINO's operators whose ONNX ones are called otherwise.
ONNX_NAMES = {
    "Convolution": "Conv", "GroupConvolution": "Conv", "SoftMax": "Softmax", "MVN": "LayerNormalization",
    "Multiply": "Mul", "Subtract": "Sub", "Divide": "Div", "Power": "Pow", "Convert": "Cast", "Interpolate": "Resize",
    "StridedSlice": "Slice", "VariadicSplit": "Split", "Select": "Where", "Swish": "Swish", "Broadcast": "Expand",
    "ShapeOf": "Shape", "FakeQuantize": "QuantizeLinear",
}  # fmt: skip
SILENT = ("Const", "Parameter", "Result")


def read_openvino(file: Path) -> Graph:
    """The graph of the IR `file`; raises UserError for what is none, is too large, or leaves a shape open."""
    layers, edges = _parsed(file)
    tensors: dict[str, Tensor] = {}
    nodes = []
    for number, layer in layers.items():
        for port in layer.iterfind("output/port"):
            tensors[f"{number}:{port.get('id')}"] = _tensor(layer, port, file)
        kind = layer.get("type", "")
        if kind not in SILENT:
            ports = [port.get("id", "") for port in layer.iterfind("input/port")]
            inputs = tuple(edges.get((number, port), "") for port in ports)
            outputs = tuple(f"{number}:{port.get('id')}" for port in layer.iterfind("output/port"))
            attributes = _attributes(layer)
            nodes.append(Node(layer.get("name", number), ONNX_NAMES.get(kind, kind), inputs, outputs, attributes))
    return Graph(str(file), tuple(nodes), tensors)


def _parsed(file: Path) -> tuple[dict[str, ElementTree.Element], dict[tuple[str, str], str]]:
    """Layers by number, and by layer and port the tensor that goes in."""
    try:
        size = file.stat().st_size
        if size > MAX_GRAPH_BYTES:
            raise UserError(f"the graph '{file}' has {size} bytes; at most {MAX_GRAPH_BYTES} are read")
        data = file.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # no IR has any; entities can blow up memory
            raise UserError(f"'{file}' is no OpenVINO model: it declares a document type")
        root = ElementTree.fromstring(data)
    except OSError as error:
        raise UserError(f"the graph '{file}' can't be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' is no OpenVINO model: {error}", hint="give an openvino_model.xml") from error
    layers = {layer.get("id", ""): layer for layer in root.iterfind("layers/layer")}
    if not 0 < len(layers) <= MAX_NODES:
        raise UserError(f"the graph '{file}' has {len(layers)} layers; 1 to {MAX_NODES} are read")
    edges = {
        (edge.get("to-layer", ""), edge.get("to-port", "")): f"{edge.get('from-layer')}:{edge.get('from-port')}"
        for edge in root.iterfind("edges/edge")
    }
    return layers, edges


def _tensor(layer: ElementTree.Element, port: ElementTree.Element, file: Path) -> Tensor:
    texts = [side.text or "" for side in port.iterfind("dim")]
    shape = tuple(int(text) if re.fullmatch(r"\d{1,10}", text) else -1 for text in texts)
    if math.prod(max(side, 1) for side in shape) > MAX_TENSOR_ELEMENTS:
        raise UserError(f"'{layer.get('name')}' in '{file}' makes the shape {shape}: that is too large")
    precision = port.get("precision", "")
    bits = int("".join(re.findall(r"\d+", precision)[:1]) or 8)
    if precision.startswith("F8"):
        bits = 8
    if layer.get("type") == "FakeQuantize":
        levels = _numbers(layer, "levels")
        bits = max(1, math.ceil(math.log2(levels[0]))) if levels and 2 <= levels[0] <= 2**16 else bits
        return Tensor(shape, bits, True)
    return Tensor(shape, bits, precision in FLOATS, layer.get("type") == "Const", layer.get("name", ""))


def _attributes(layer: ElementTree.Element) -> Mapping[str, tuple[int, ...]]:
    """Strides and transpositions, under the names that ONNX has for them."""
    data = layer.find("data")
    if data is None:
        return {}
    found = {"strides": _numbers(layer, "strides")}
    for theirs, ours in (("transpose_a", "transA"), ("transpose_b", "transB")):
        found[ours] = (int(data.get(theirs, "false") == "true"),)
    return found


def _numbers(layer: ElementTree.Element, name: str) -> tuple[int, ...]:
    data = layer.find("data")
    return tuple(map(int, re.findall(r"\d+", data.get(name, "") if data is not None else "")))
