"""The layers of a graph whose weights can be compressed, and their weights as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MIN_ELEMENTS = 1024  # biases, norms and constants of the graph stay exact: their size is nothing
TRANSPOSED = ".transposed"  # what export adds to the name of a weight that it turned
ROUNDED = ".rounded"  # what an activation's name ends with when it was rounded to eight bits


@dataclass(frozen=True)
class Layer:
    """A weight and how it is used.

    As a matrix its rows are the output channels and its columns their inputs, of a convolution the input channels of
    one place of the kernel after another. `permutation` turns the matrix, in `matrix_shape`, into the graph's tensor.
    """

    name: str  # as the checkpoint has it
    value: ir.Value
    node: ir.Node  # the first that uses it
    matrix_shape: tuple[int, ...]
    permutation: tuple[int, ...]

    @property
    def op_type(self) -> str:
        """The operator that uses the weight."""
        return self.node.op_type

    @property
    def input_name(self) -> str:
        """The tensor that the weight is multiplied with, under the name that it has in the traced graph."""
        return str(self.node.inputs[0].name if self.node.inputs[0] else "").removesuffix(ROUNDED)

    @property
    def columns(self) -> int:
        """Inputs of an output channel."""
        return int(np.prod(self.matrix_shape[1:]))

    def matrix(self) -> NDArray[np.float32]:
        """The weight, read now, as a float32 matrix (rows, columns) of its own."""
        tensor = self.value.const_value
        assert tensor is not None  # find_layers takes no others
        array = tensor.numpy().transpose(np.argsort(self.permutation))
        return np.ascontiguousarray(array, np.float32).reshape(self.matrix_shape[0], -1)

    def tensor(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """A matrix in the shape that the graph has the weight in."""
        return np.ascontiguousarray(matrix.reshape(self.matrix_shape).transpose(self.permutation))


def find_layers(model: ir.Model, least: int | None = None) -> list[Layer]:
    """The layers with a float32 weight of at least MIN_ELEMENTS, or `least`, in the graph's order, each weight once."""
    least = MIN_ELEMENTS if least is None else least
    found: dict[str, Layer] = {}
    for node in model.graph:
        position = 0 if node.op_type == "Gather" else 1
        if node.op_type not in ("Conv", "MatMul", "Gemm", "Gather") or len(node.inputs) <= position:
            continue
        value = node.inputs[position]
        weight = value.const_value if value is not None and value.is_initializer() else None
        if value is None or value.name is None or weight is None or weight.dtype != ir.DataType.FLOAT:
            continue
        if weight.size >= least and len(weight.shape) >= 2 and value.name not in found:
            permutation = _permutation(node, len(weight.shape))
            shape = weight.shape.numpy()
            matrix_shape = tuple(shape[axis] for axis in np.argsort(permutation))
            found[value.name] = Layer(checkpoint_name(value.name), value, node, matrix_shape, permutation)
    return list(found.values())


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    if node.op_type == "Conv":  # (out, *kernel, in) to (out, in, *kernel)
        return (0, rank - 1, *range(1, rank - 1))
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    if node.op_type == "Gather" or transposed:
        return tuple(range(rank))
    return (*range(1, rank), 0)  # a product has the outputs last


def checkpoint_name(name: str) -> str:
    """The name that a checkpoint gives the weight which a traced graph calls `name`."""
    return name.split(TRANSPOSED)[0].removeprefix("unet.").removeprefix("text_encoder.")
