"""The addresses that a tiled layer reads and writes, in order: what a DRAM sees of a loop nest.

Tensors lie one after the other, rows of a picture in rows of a channel in channels (a weight's inputs in its outputs).
Stored `contiguous`, an operand's tiles lie one after the other in the order in which the loops come to them, each a
single run, what overlaps of input tiles stored with each. Groups and repetitions of a layer follow one another.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .tiling import Tiling, padding, span
from .workload import Layer

Ints = NDArray[np.int64]
Pair = tuple[Ints, Ints]
INPUT, WEIGHT, OUTPUT, PARTIAL_SUM = range(4)  # what a run is of; a partial sum is read, an output written
OPERANDS = {"input": INPUT, "weight": WEIGHT, "output": OUTPUT}
_TURN = (0, 1, 3, 2)  # which of them comes first within a step
_LOOPS = {"input": "ns", "weight": "mn", "output": "ms"}  # what a tile is of: its channels, its places
ALIGNMENT_BYTES = 4096  # where a tensor begins
PIECE_BYTES = 16384  # what a layer without a product reads before it writes


@dataclass(frozen=True)
class Stream:
    """Runs of bytes in order: (runs,) each. A run of an output is written, the others are read."""

    start: Ints
    length: Ints
    operand: Ints


class _Cut(NamedTuple):
    """The tiles of an axis: where each begins in its tensor, its size, and where it begins among stored tiles."""

    begin: Ints
    size: Ints
    stored: Ints
    length: int  # of the tensor
    total: int  # of all stored tiles


class _Tensor(NamedTuple):
    """A tensor of (channels, rows, columns) in tiles."""

    channels: _Cut
    rows: _Cut
    columns: _Cut
    bits: int
    base: int  # its address


def step_count(layer: Layer, tiling: Tiling) -> int:
    """Turns of the innermost loop."""
    if not layer.is_product:
        return -(-layer.output_bytes // PIECE_BYTES)
    return math.prod(_counts(layer, tiling).values())


def _counts(layer: Layer, tiling: Tiling) -> dict[str, int]:
    """The numbers of repetitions g and of tiles of output channels m, input channels n, rows r and columns c."""
    return {
        "g": layer.batch * layer.groups,
        "m": -(-(layer.out_channels // layer.groups) // tiling.out_channels),
        "n": -(-layer.in_channels // tiling.in_channels),
        "r": -(-layer.out_height // tiling.rows),
        "c": -(-layer.out_width // tiling.columns),
    }


def stream(
    layer: Layer, tiling: Tiling, contiguous: Collection[str] = (), operands: Collection[str] = tuple(OPERANDS),
    steps: tuple[int, int] | None = None,
) -> Stream:  # fmt: skip
    """The runs of steps from the first up to, not including, the second of `steps`, of all by default.

    Operands that are not in `operands` stay on the chip.
    """
    count = step_count(layer, tiling)
    first, last = steps or (0, count)
    if not layer.is_product:
        return _streamed_through(layer, operands, np.arange(first, last))
    index = _indices(layer, tiling, np.arange(first - 1, last + 1))
    tensors = _tensors(layer, tiling)
    found = []
    for name in operands:
        for moments, operand in _transfers(name, index, first, last, count):
            at = {loop: each[moments - first + 1] for loop, each in index.items()}
            order = tiling.order if name in contiguous else None
            found.append(_runs(tensors[name], name, operand, at, moments * 4 + _TURN[operand], order))
    return _merged(found)


def _plain(size: int, tile: int) -> _Cut:
    begin = np.arange(0, size, tile, dtype=np.int64)
    return _Cut(begin, np.minimum(begin + tile, size) - begin, begin, size, size)


def _windows(cut: _Cut, kernel: int, stride: int, inputs: int) -> _Cut:
    """The inputs of an axis that the tiles of its outputs read."""
    before = padding(cut.length, kernel, stride, inputs)
    begin, end = span(cut.begin, cut.begin + cut.size, kernel, stride, before, inputs)
    sizes = end - begin
    return _Cut(begin, sizes, np.cumsum(sizes) - sizes, inputs, int(sizes.sum()))


def _tensors(layer: Layer, tiling: Tiling) -> dict[str, _Tensor]:
    """The three operands. A weight has a place for each output channel and a column for each of its numbers."""
    m = _plain(layer.out_channels // layer.groups, tiling.out_channels)
    n = _plain(layer.in_channels, tiling.in_channels)
    rows, columns = _plain(layer.out_height, tiling.rows), _plain(layer.out_width, tiling.columns)
    high = _windows(rows, layer.kernel_height, layer.stride, layer.input_height)
    wide = _windows(columns, layer.kernel_width, layer.stride, layer.input_width)
    kernel = layer.kernel_height * layer.kernel_width
    taps = _Cut(n.begin * kernel, n.size * kernel, n.stored * kernel, n.length * kernel, n.total * kernel)
    found: dict[str, _Tensor] = {}
    base = 0
    cuts = {"input": (n, high, wide), "weight": (m, _plain(1, 1), taps), "output": (m, rows, columns)}
    for name, bits in (("input", layer.input_bits), ("weight", layer.weight_bits), ("output", layer.output_bits)):
        found[name] = _Tensor(*cuts[name], bits, base)
        elements = layer.batch * layer.groups * math.prod(max(cut.length, cut.total) for cut in cuts[name])
        base += -(-elements * bits // (8 * ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
    return found


def _indices(layer: Layer, tiling: Tiling, steps: Ints) -> dict[str, Ints]:
    """The repetition g and the tiles of m, n, rows r and columns c at some steps: (steps,) each."""
    counts = _counts(layer, tiling)
    found: dict[str, Ints] = {}
    for loop in reversed("g" + tiling.order.replace("s", "rc")):
        steps, found[loop] = np.divmod(steps, counts[loop])
    return found


def _transfers(name: str, index: dict[str, Ints], first: int, last: int, count: int) -> list[tuple[Ints, int]]:
    """The steps before which an operand's tile comes, or after which it goes, and as what."""
    loops = "g" + _LOOPS[name].replace("s", "rc")
    changed = np.any([np.diff(index[loop]) != 0 for loop in loops], axis=0)  # between neighbours, from first - 1 on
    steps = np.arange(first, last)
    comes = changed[:-1] | (steps == 0)
    if name != "output":
        return [(steps[comes], OPERANDS[name])]
    goes = changed[1:] | (steps == count - 1)
    return [(steps[comes & (index["n"][1:-1] > 0)], PARTIAL_SUM), (steps[goes], OUTPUT)]


def _runs(
    tensor: _Tensor, name: str, operand: int, at: dict[str, Ints], key: Ints, order: str | None
) -> tuple[Ints, Ints, Ints, Ints]:
    """Keys to sort by, starts, lengths and operands of the runs of some tiles, in rows or, by `order`, contiguous."""
    channel = at[_LOOPS[name][0]]
    row, column = (np.zeros_like(channel), at["n"]) if name == "weight" else (at["r"], at["c"])
    c0, cn = tensor.channels.begin[channel], tensor.channels.size[channel]
    y0, yn = tensor.rows.begin[row], tensor.rows.size[row]
    x0, xn = tensor.columns.begin[column], tensor.columns.size[column]
    if order is None:
        height, width = tensor.rows.length, tensor.columns.length
        full_row = xn == width
        full_picture = full_row & (yn == height)
        lines = np.where(full_picture, 1, np.where(full_row, cn, cn * yn))
        of = np.repeat(np.arange(len(lines)), lines)
        k = np.arange(len(of)) - np.repeat(np.cumsum(lines) - lines, lines)
        rows = np.maximum(yn[of], 1)
        c = (at["g"] * tensor.channels.length + c0)[of] + np.where(
            full_picture[of], 0, np.where(full_row[of], k, k // rows)
        )
        y = y0[of] + np.where(full_row[of], 0, k % rows)
        begin = (c * height + y) * width + x0[of]
        size = np.where(full_picture, cn * height * width, np.where(full_row, yn * width, xn))[of]
        key = key[of]
    else:
        outside = order.index(_LOOPS[name][0]) < order.index(_LOOPS[name][1])
        whole = tensor.channels.total * tensor.rows.total * tensor.columns.total
        begin = at["g"] * whole + _stored(tensor, (c0, cn), (row, yn), (column, xn), outside)
        size = cn * yn * xn
    start = begin * tensor.bits // 8
    length = -(-(begin + size) * tensor.bits // 8) - start
    there = size > 0
    return key[there], tensor.base + start[there], length[there], np.full(int(there.sum()), operand)


def _stored(tensor: _Tensor, channels: Pair, rows: Pair, columns: Pair, channels_outside: bool) -> Ints:
    """Where tiles begin when each is stored as one run, in elements; of channels the first and the number, of rows and
    columns the tile and the number."""
    (c0, cn), (row, yn), (column, xn) = channels, rows, columns
    ys, xs = tensor.rows.stored[row], tensor.columns.stored[column]
    places = ys * tensor.columns.total + yn * xs
    outside: Ints = c0 * (tensor.rows.total * tensor.columns.total) + cn * places
    inside: Ints = places * tensor.channels.total + yn * xn * c0
    return outside if channels_outside else inside


def _streamed_through(layer: Layer, operands: Collection[str], pieces: Ints) -> Stream:
    """A layer without a product reads its inputs and writes its outputs piece by piece."""
    count = step_count(layer, Tiling("smn", 1, 1, 1, 1))
    found = []
    base = 0
    for name, total in (("input", layer.input_bytes), ("output", layer.output_bytes)):
        if name in operands:
            begin, end = pieces * total // count, (pieces + 1) * total // count
            operand = OPERANDS[name]
            found.append((pieces * 4 + _TURN[operand], base + begin, end - begin, np.full(len(pieces), operand)))
        base += -(-total // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return _merged(found)


def _merged(found: list[tuple[Ints, Ints, Ints, Ints]]) -> Stream:
    if not found:
        nothing = np.zeros(0, np.int64)
        return Stream(nothing, nothing, nothing)
    key, start, length, operand = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(key, kind="stable")
    return Stream(start[order], length[order], operand[order])
