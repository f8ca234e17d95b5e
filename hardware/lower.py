"""From a graph to its layers: what multiplies becomes a convolution, what only moves numbers is kept for its bytes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..runtime.errors import UserError
from .graph import Graph, Node, Tensor
from .workload import FLOAT_BITS, Layer

CONVOLUTIONS = ("Conv", "ConvInteger")
MATRIX_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "MatMulNBits", "FusedMatMul", "FullyConnected")
QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear")
# What neither computes nor moves anything in an engine: other views of the same numbers, and their types.
FREE = {
    *QUANTIZED, "DequantizeLinear", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Constant",
    "ConstantOfShape", "Shape", "Size", "Range",
}  # fmt: skip
KINDS = {
    "normalization": (
        "GroupNormalization", "LayerNormalization", "InstanceNormalization", "BatchNormalization", "RMSNormalization",
        "ReduceMean",
    ),
    "softmax": ("Softmax",),
    "elementwise": (
        "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", "Neg", "Abs", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu",
        "Swish", "HardSigmoid", "LeakyRelu", "Elu", "Clip", "Min", "Max", "Minimum", "Maximum", "Where", "IsNaN", "Sin",
        "Cos", "Reciprocal", "Not", "And", "Or", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Trilu",
    ),
    "move": ("Transpose", "Concat", "Slice", "Split", "Resize", "Pad", "Expand", "Tile", "CumSum"),
    "gather": ("Gather", "GatherND", "GatherElements", "EmbedLayer"),
}  # fmt: skip
KIND_OF = {op: kind for kind, ops in KINDS.items() for op in ops}
VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
WEIGHT_NAME = re.compile(r"^(.+)\.weight(\..*)?$")  # of a checkpoint's, with what was done to it
PASSED = (*VIEWS, "Transpose", "Cast", "DequantizeLinear", *QUANTIZED)


def layers_of(graph: Graph) -> tuple[Layer, ...]:
    """The layers that `graph` runs, without what depends on constants and shapes alone, and without biases.

    A sum with a bias is a part of the layer before it, and x * sigmoid(x) one function. Raises UserError for an
    operator that is not known here, since it may hide any number of multiplications, and for a shape that is open.
    """
    return tuple(_Lowering(graph).layers())


@dataclass(frozen=True)
class _Operand:
    """Where a product's input comes from: its bits, whether it is a weight, and the layer that the weight is of."""

    bits: int
    is_static: bool
    layer: str


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {name: node for node in graph.nodes for name in node.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    @cached_property
    def static(self) -> set[str]:
        """What depends on no input: constants, what is made of them, and shapes."""
        found = {name for name, tensor in self.graph.tensors.items() if tensor.is_constant} | {""}
        for node in self.graph.nodes:
            if node.op in ("Shape", "Size", "Constant") or all(name in found for name in node.inputs):
                found.update(node.outputs)
        return found

    def layers(self) -> Iterator[Layer]:
        for node in self.graph.nodes:
            if not node.outputs or all(name in self.static for name in node.outputs) or node.op in FREE:
                continue
            if node.op in CONVOLUTIONS:
                yield self.convolution(node)
            elif node.op == "MatMulNBits":
                yield self.packed_product(node)
            elif node.op in MATRIX_PRODUCTS:
                yield self.matrix_product(node)
            elif (kind := KIND_OF.get(node.op)) is None:
                raise UserError(
                    f"'{node.name}' in '{self.graph.file}' is of the operator {node.op}, which predict does not know",
                    hint="export the model with outzoom export-all, whose operators are known",
                )
            elif self.tensor(node.outputs[0]).is_float and not self.is_part(node):
                yield self.plain(node, kind)

    def tensor(self, name: str) -> Tensor:
        """A tensor whose shape is known; raises UserError."""
        found = self.graph.tensors.get(name)
        if found is None or any(side < 0 for side in found.shape):
            shown = "no shape" if found is None else f"the shape {found.shape}, some of it open"
            raise UserError(
                f"the tensor '{name}' in '{self.graph.file}' has {shown}",
                hint="build the bundle for one size, or for the target onnxruntime, whose open sides can be set",
            )
        return found

    def operand(self, name: str) -> _Operand:
        """Follow an input back through its number formats."""
        bits, is_static = self.tensor(name).bits, name in self.static
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            tensor = self.graph.tensors.get(name)
            bits = min(bits, tensor.bits) if tensor else bits
            node = self.producers.get(name)
            if node is None or not node.inputs:
                break
            if node.op in PASSED:
                name = node.inputs[0]
            elif (codes := self.codes(node)) is not None:
                name = codes
            else:
                break
        tensor = self.graph.tensors.get(name)
        weight = WEIGHT_NAME.match((tensor.label if tensor else "") or name)
        return _Operand(bits, is_static, weight[1] if weight else "")

    def codes(self, node: Node) -> str | None:
        """Of the multiplication (and subtraction) by which OpenVINO makes numbers of codes: the codes."""
        for _ in range(4):
            if node.op == "Cast":
                source = self.graph.tensors.get(node.inputs[0])
                return node.inputs[0] if source is not None and not source.is_float else None
            if node.op not in ("Mul", "Sub", *VIEWS) or not all(name in self.static for name in node.inputs[1:]):
                return None
            following = self.producers.get(node.inputs[0])
            if following is None:
                return None
            node = following
        return None

    def stored_bits(self, name: str) -> int:
        """Of what a layer makes: those of its codes, if everything that reads it reads codes."""
        readers = self.consumers.get(name, [])
        while len(readers) == 1 and self.is_affine(readers[0]):
            name = readers[0].outputs[0]
            readers = self.consumers.get(name, [])
        if readers and all(node.op in QUANTIZED for node in readers):
            return max(self.graph.tensors[node.outputs[0]].bits for node in readers)
        return self.tensor(name).bits

    def convolution(self, node: Node) -> Layer:
        data, weight, out = (self.tensor(name) for name in (*node.inputs[:2], node.outputs[0]))
        if len(data.shape) != 4 or len(out.shape) != 4 or len(weight.shape) not in (4, 5):
            raise self.unfit(node, data, weight)
        batch, channels, in_height, in_width = data.shape
        left, right = self.operand(node.inputs[0]), self.operand(node.inputs[1])
        per_group, kernel_height, kernel_width = weight.shape[-3:]
        groups = channels // max(per_group, 1)
        return Layer(
            right.layer or node.name, "depthwise" if groups == channels > 1 else "conv", batch,
            out.shape[1], per_group, out.shape[2], out.shape[3],
            kernel_height, kernel_width, node.attribute("strides", 1) or 1, groups,
            left.bits, right.bits, self.stored_bits(node.outputs[0]),
            in_height, in_width, op=node.op,
        )  # fmt: skip

    def matrix_product(self, node: Node) -> Layer:
        first, second, out = (self.tensor(name) for name in (*node.inputs[:2], node.outputs[0]))
        inner = first.shape[-2 if node.attribute("transA") and len(first.shape) > 1 else -1] if first.shape else 0
        if inner == 0 or not out.shape or math.prod(first.shape) % inner:
            raise self.unfit(node, first, second)
        left, right = self.operand(node.inputs[0]), self.operand(node.inputs[1])
        columns = out.shape[-1]
        rows = math.prod(out.shape) // max(columns, 1)
        shared = left.is_static or right.is_static or len(second.shape) < 3
        batch = 1 if shared else math.prod(out.shape[:-2])
        return Layer(
            right.layer or node.name, "linear" if shared else "attention", batch,
            columns, inner, rows // max(batch, 1), 1, 1, 1, 1, 1,
            left.bits, right.bits, self.stored_bits(node.outputs[0]), op=node.op,
        )  # fmt: skip

    def packed_product(self, node: Node) -> Layer:
        """ONNX Runtime's product with weights in blocks of a few bits."""
        data = self.tensor(node.inputs[0])
        inner, columns = node.attribute("K"), node.attribute("N")
        if inner < 1 or columns < 1 or math.prod(data.shape) % inner:
            raise self.unfit(node, data, data)
        rows = math.prod(data.shape) // inner
        return Layer(
            self.operand(node.inputs[1]).layer or node.name, "linear", 1, columns, inner, rows, 1, 1, 1, 1, 1,
            self.operand(node.inputs[0]).bits, node.attribute("bits", 4), self.stored_bits(node.outputs[0]),
            op=node.op,
        )  # fmt: skip

    def plain(self, node: Node, kind: str) -> Layer:
        """A layer without products, by the size of what it makes."""
        names = [name for name in node.outputs if name in self.graph.tensors]
        largest = max((self.tensor(name) for name in names), key=lambda tensor: math.prod(tensor.shape))
        elements = sum(math.prod(self.tensor(name).shape) for name in names)
        one = math.prod(largest.shape)
        shape = largest.shape if len(names) == 1 or one == 0 else (elements // one, *largest.shape)
        batch, channels, height, width = _four(shape, is_image=len(largest.shape) == 4)
        moving = [name for name in node.inputs if name not in self.static]
        full = [name for name in moving if math.prod(self.tensor(name).shape) * 2 > elements]
        operands = max(1, len(full)) if kind == "elementwise" else 1
        bits = [self.operand(name).bits for name in moving] or [FLOAT_BITS]
        return Layer(
            node.name, kind, batch, channels, 1, height, width, 1, 1, 1, 1,
            max(bits), FLOAT_BITS, self.stored_bits(node.outputs[0]), operands=operands,
            op=node.op,
        )  # fmt: skip

    def is_part(self, node: Node) -> bool:
        """Whether a node is no layer of its own: a bias, a number's format, the second half of x * sigmoid(x)."""
        return self.is_affine(node) or self.is_swish(node) or self.codes(node) is not None

    def is_affine(self, node: Node) -> bool:
        """Whether it adds to, or multiplies, what a product or a normalization made by numbers that are fixed."""
        if node.op not in ("Add", "Mul"):
            return False
        moving = [name for name in node.inputs if name not in self.static]
        maker = self.producers.get(moving[0]) if len(moving) == 1 else None
        while maker is not None and (maker.op in VIEWS or (maker.op in ("Add", "Mul") and maker is not node)):
            moving = [name for name in maker.inputs if name not in self.static]
            if maker.op not in VIEWS and len(moving) != 1:
                return False
            maker = self.producers.get(moving[0]) if moving else None
        return maker is not None and maker.op in (*CONVOLUTIONS, *MATRIX_PRODUCTS, *KINDS["normalization"])

    def is_swish(self, node: Node) -> bool:
        """Whether a product is x * sigmoid(x), whose sigmoid counts for both."""
        if node.op != "Mul" or len(node.inputs) != 2:
            return False
        makers = [self.producers.get(name) for name in node.inputs]
        return any(
            maker is not None and maker.op == "Sigmoid" and maker.inputs[0] == other
            for maker, other in zip(makers, reversed(node.inputs), strict=True)
        )

    def unfit(self, node: Node, data: Tensor, weight: Tensor) -> UserError:
        return UserError(
            f"'{node.name}' in '{self.graph.file}', a {node.op} of {data.shape} and {weight.shape}, can't be counted",
            hint="two-dimensional convolutions and products of matrices are",
        )


def _four(shape: tuple[int, ...], is_image: bool) -> tuple[int, int, int, int]:
    """(batch, channels, height, width) of any tensor: the last side of one that is no image are its channels."""
    if is_image:
        *batch, channels, height, width = shape
        return math.prod(batch), channels, height, width
    if not shape:
        return 1, 1, 1, 1
    *rows, channels = shape
    return 1, channels, math.prod(rows), 1
