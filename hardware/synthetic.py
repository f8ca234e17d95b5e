"""Small graphs of one layer repeated, to time engines with: as they stand in the models, but of sizes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import MissingPackageError

OPSET = 21
# Multiples of 32, as in the models: what an engine pads to the size of its units is lost.
CHANNELS = (32, 96, 288)
SIDES = (6, 20, 60, 150)
ROWS = (1, 20, 150, 1200)
WIDTHS = (64, 224, 832)
# Heads, rows, keys and width of a head.
ATTENTION = (
    (1, 24, 24, 40), (3, 100, 100, 40), (3, 400, 400, 40), (1, 1500, 1500, 40), (1, 900, 900, 200), (3, 100, 60, 40),
    (3, 400, 60, 40), (3, 1500, 60, 40),
)  # fmt: skip
ELEMENTS = (256, 8 * 2**10, 256 * 2**10, 2 * 2**20)
# Layers without a product, and how much larger what they make is than what they take.
PLAIN = {
    "Sigmoid": 1, "GroupNormalization": 1, "LayerNormalization": 1, "Gelu": 1, "Add": 1, "Transpose": 1, "Concat": 2,
    "Resize": 4,
}  # fmt: skip
MAX_MACS = 1.5e9  # of one layer, so that it is timed in a moment


@dataclass(frozen=True)
class Cell:
    """A layer to time: what it is, the sizes of its product, and the shape that it takes and makes."""

    kind: str
    rows: int
    columns: int
    depth: int
    kernel: int
    shape: tuple[int, ...]

    @property
    def is_product(self) -> bool:
        """Whether its type matters."""
        return self.kind in ("conv", "linear", "attention")


def cells() -> Iterator[Cell]:
    """All that are timed."""
    for kernel in (1, 3):
        for channels in CHANNELS:
            for side in SIDES:
                if side**2 * channels**2 * kernel**2 <= MAX_MACS:
                    depth = channels * kernel**2
                    yield Cell("conv", side**2, channels, depth, kernel, (1, channels, side, side))
    for width in WIDTHS:
        for rows in ROWS:
            yield Cell("linear", rows, width, width, 1, (1, rows, width))
    for heads, rows, keys, width in ATTENTION:
        yield Cell("attention", rows * heads, keys, width, 1, (1, rows, heads * width))
    for elements in ELEMENTS:
        for kind, growth in PLAIN.items():
            side = int(np.sqrt(elements / 16))
            is_image = kind not in ("LayerNormalization", "Gelu", "Add")
            shape: tuple[int, ...] = (1, 16, side, side) if is_image else (1, side**2 // 4, 64)
            yield Cell(kind, growth * int(np.prod(shape)), 1, 1, 1, shape)


def write_chain(file: Path, cell: Cell, length: int, data_type: str, rounds_results: bool = False) -> dict[str, Any]:
    """Write a model of `length` cells after each other; what to feed it.

    Its weights are of `data_type`: float32, float16 (converted when the engine is loaded), or int8, and then what flows
    into products is rounded, too; with `rounds_results` what convolutions make as well. Raises MissingPackageError
    without `onnx`.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingPackageError("onnx", "export", "calibrating") from error
    chain = _Chain(helper, onnx.numpy_helper, data_type, rounds_results)
    name = "x"
    for _ in range(length):
        name = chain.cell(cell, name)
    chain.node("Identity", [name], "out")
    inputs = {"x": cell.shape}
    if cell.kind == "attention":
        inputs |= {"keys": (1, cell.columns, cell.shape[2])}
    if cell.kind in ("Add", "Concat"):
        inputs |= {"other": cell.shape}
    graph = helper.make_graph(
        chain.nodes, "chain",
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, shape) for each, shape in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, cell.shape)], chain.stored,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    rng = np.random.default_rng(0)
    return {each: rng.standard_normal(shape, np.float32) for each, shape in inputs.items()}


class _Chain:
    """A graph that grows by a cell at a time."""

    def __init__(self, helper: Any, arrays: Any, data_type: str, rounds_results: bool) -> None:
        self.helper, self.arrays, self.data_type, self.rounds_results = helper, arrays, data_type, rounds_results
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.rng = np.random.default_rng(1)

    def node(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        made = output or f"t{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, inputs, [made], name=f"n{len(self.nodes)}", **attributes))
        return made

    def constant(self, array: Any) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(self.arrays.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        values = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        if self.data_type == "int8":
            codes = self.constant(np.clip(np.rint(values * 100), -127, 127).astype(np.int8))
            return self.node("DequantizeLinear", [codes, self.constant(np.float32(0.01))])
        if self.data_type == "float16":
            return self.node("Cast", [self.constant(values.astype(np.float16))], to=1)
        return self.constant(values.astype(np.float32))

    def rounded(self, name: str) -> str:
        """Through codes of 8 bits, if that is the type."""
        if self.data_type != "int8":
            return name
        scale, zero = self.constant(np.float32(0.05)), self.constant(np.uint8(128))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, scale, zero]), scale, zero])

    def result(self, name: str) -> str:
        return self.rounded(name) if self.rounds_results else name

    def cell(self, cell: Cell, name: str) -> str:
        channels = cell.shape[1]
        if cell.kind == "conv":
            name = self.swish(self.group_norm(name, channels))
            pads = [cell.kernel // 2] * 4
            weight = self.weight(channels, channels, cell.kernel, cell.kernel)
            return self.result(self.node("Conv", [self.rounded(name), weight, self.floats(channels)], pads=pads))
        if cell.kind == "linear":
            product = self.node("MatMul", [self.rounded(name), self.weight(cell.depth, cell.columns)])
            return self.node("Add", [product, self.floats(cell.columns)])
        if cell.kind == "attention":
            return self.attention(name, cell.rows // cell.shape[1], cell)
        if cell.kind == "Sigmoid":
            return self.swish(name)
        if cell.kind == "GroupNormalization":
            return self.group_norm(name, channels)
        if cell.kind == "LayerNormalization":
            return self.node(cell.kind, [name, self.floats(cell.shape[-1]), self.floats(cell.shape[-1])])
        if cell.kind == "Transpose":  # read as the shape that it had, so that no two of them undo each other
            shape = self.constant(np.array(cell.shape, np.int64))
            return self.node("Reshape", [self.node("Transpose", [name], perm=[0, 2, 3, 1]), shape])
        if cell.kind == "Concat":  # and back to the first half
            bounds = [self.constant(np.array([number], np.int64)) for number in (0, channels, 1)]
            return self.node("Slice", [self.node("Concat", [name, "other"], axis=1), *bounds])
        if cell.kind == "Resize":  # to twice the sides, and every other row and column of that
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            large = self.node("Resize", [name, "", scales], mode="nearest")
            starts, ends, axes, steps = ([0, 0], [2**30, 2**30], [2, 3], [2, 2])
            return self.node(
                "Slice", [large, *(self.constant(np.array(each, np.int64)) for each in (starts, ends, axes, steps))]
            )
        return self.node(cell.kind, [name, "other"] if cell.kind == "Add" else [name])

    def floats(self, count: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, count).astype(np.float32))

    def group_norm(self, name: str, channels: int) -> str:
        return self.node("GroupNormalization", [name, self.floats(channels), self.floats(channels)], num_groups=8)

    def swish(self, name: str) -> str:
        return self.node("Mul", [name, self.node("Sigmoid", [name])])

    def attention(self, name: str, heads: int, cell: Cell) -> str:
        split = self.constant(np.array([1, -1, heads, cell.depth], np.int64))
        joined = self.constant(np.array([1, -1, heads * cell.depth], np.int64))
        scale = self.constant(np.float32(cell.depth**-0.25))
        source = name if cell.columns * heads == cell.rows else "keys"
        query = self.node("Transpose", [self.node("Reshape", [name, split])], perm=[0, 2, 1, 3])
        key = self.node("Transpose", [self.node("Reshape", [source, split])], perm=[0, 2, 3, 1])
        value = self.node("Transpose", [self.node("Reshape", [source, split])], perm=[0, 2, 1, 3])
        query, key = self.node("Mul", [query, scale]), self.node("Mul", [key, scale])
        scores = self.node("MatMul", [self.rounded(query), self.rounded(key)])
        shares = self.node("Softmax", [scores], axis=-1)
        mixed = self.node("MatMul", [self.rounded(shares), self.rounded(value)])
        return self.node("Reshape", [self.node("Transpose", [mixed], perm=[0, 2, 1, 3]), joined])
