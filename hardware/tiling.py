"""How often a layer's operands cross the DRAM bus when it is cut into tiles that fit on the chip.

A layer is a nest of three loops over tiles: output channels `m`, input channels `n`, and places `s` in the picture
(rows, columns and, within a batch, pictures). One tile of each operand is on the chip at a time. Inputs don't depend on
`m`, weights not on `s`, outputs not on `n`; so an operand is fetched again for every turn of the loop that it doesn't
depend on, unless nothing inside of that loop changes it. With `n` innermost outputs stay, with `s` weights stay, with
`m` inputs stay: these are the output-, weight- and input-stationary dataflows, and their six loop orders are ROMANet's
six priorities of reuse.

Source: Putra, Hanif, Shafique, "ROMANet", IEEE TVLSI 29(4), 2021 (arXiv 1902.10222), reconstructed from its abstract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError
from .workload import Layer

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

# Loop orders, from the outermost loop to the innermost.
OUTPUT_STATIONARY = ("smn", "msn")
WEIGHT_STATIONARY = ("mns", "nms")
INPUT_STATIONARY = ("snm", "nsm")
ORDERS = OUTPUT_STATIONARY + WEIGHT_STATIONARY + INPUT_STATIONARY
_IRRELEVANT = {"input": "m", "weight": "s", "output": "n"}


@dataclass(frozen=True)
class Buffers:
    """The memory on the chip for tiles, in bytes; for double buffering give half.

    A `shared` one is a single memory of the sum of the three, of which each operand may take any part. Partial sums
    are as wide as outputs unless `partial_sum_bits` says otherwise.
    """

    input_bytes: int
    weight_bytes: int
    output_bytes: int
    shared: bool = False
    partial_sum_bits: int | None = None

    def __post_init__(self) -> None:
        if min(self.input_bytes, self.weight_bytes, self.output_bytes) < 1:
            raise UserError(f"buffers hold at least a byte for each operand, got {self}")

    @property
    def total_bytes(self) -> int:
        """Of all three."""
        return self.input_bytes + self.weight_bytes + self.output_bytes


def equal_buffers(each_bytes: int) -> Buffers:
    """Three buffers of one size."""
    return Buffers(each_bytes, each_bytes, each_bytes)


def shared_buffer(total_bytes: int) -> Buffers:
    """One memory for all operands."""
    third = total_bytes // 3
    return Buffers(third, third, total_bytes - 2 * third, shared=True)


class Axis(NamedTuple):
    """The ways to cut one axis of the output, one for each number of parts: (candidates,) each."""

    tiles: Ints  # outputs of a part
    parts: Ints
    extents: Ints  # inputs that all parts read together, what overlaps counted as often as it is read
    largest: Ints  # inputs that a part reads at most


@dataclass(frozen=True)
class Tiling:
    """The sizes of an output tile, of the input channels summed up at a time, and the order of the loops.

    The sizes are at most the layer's; `pictures` is 1 unless a batch shares the weights.
    """

    order: str
    out_channels: int
    in_channels: int
    rows: int
    columns: int
    pictures: int = 1


@dataclass(frozen=True)
class Traffic:
    """Bytes that cross the DRAM bus; partial sums that leave the chip come back once for each time they leave."""

    input_bytes: float = 0.0
    weight_bytes: float = 0.0
    output_bytes: float = 0.0
    partial_sum_bytes: float = 0.0  # written; as many are read

    @property
    def read_bytes(self) -> float:
        """From DRAM."""
        return self.input_bytes + self.weight_bytes + self.partial_sum_bytes

    @property
    def write_bytes(self) -> float:
        """To DRAM."""
        return self.output_bytes + self.partial_sum_bytes

    @property
    def total_bytes(self) -> float:
        """Both ways."""
        return self.read_bytes + self.write_bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.input_bytes + other.input_bytes,
            self.weight_bytes + other.weight_bytes,
            self.output_bytes + other.output_bytes,
            self.partial_sum_bytes + other.partial_sum_bytes,
        )


def padding(outputs: int, kernel: int, stride: int, inputs: int) -> int:
    """Zeros before the first input of an axis, where they are shared out evenly."""
    return max((outputs - 1) * stride + kernel - inputs + 1, 0) // 2


def span(first: Ints, last: Ints, kernel: int, stride: int, before: int, inputs: int) -> tuple[Ints, Ints]:
    """The inputs of outputs from `first` up to, not including, `last`: where they begin, where they end.

    What lies between kernels that are smaller than their stride is read with them.
    """
    begin = np.clip(first * stride - before, 0, inputs)
    return begin, np.clip((last - 1) * stride + max(kernel, stride) - before, begin, inputs)


@lru_cache(maxsize=4096)
def divisions(size: int) -> Ints:
    """The smallest tile for each number of parts that a size can be cut into, largest first: (about 2 sqrt(size),)."""
    return np.unique(-(-size // np.arange(1, size + 1, dtype=np.int64)))[::-1]


@lru_cache(maxsize=4096)
def axis(outputs: int, kernel: int, stride: int, inputs: int) -> Axis:
    """The ways to cut an axis of so many outputs and inputs. Zeros of the padding are not fetched."""
    tiles = divisions(outputs)
    before = padding(outputs, kernel, stride, inputs)
    extents, largest = np.empty_like(tiles), np.empty_like(tiles)
    for index, tile in enumerate(tiles):
        first = np.arange(0, outputs, tile, dtype=np.int64)
        begin, end = span(first, np.minimum(first + tile, outputs), kernel, stride, before, inputs)
        extents[index], largest[index] = (end - begin).sum(), (end - begin).max()
    return Axis(tiles, -(-outputs // tiles), extents, largest)


def compulsory(layer: Layer, pictures: int = 1) -> Traffic:
    """What any schedule of the layer alone moves: each input that is used, each weight and each output once."""
    return Traffic(
        _inputs(layer) * pictures, weight_bits(layer) / 8, layer.output_elements * pictures * layer.output_bits / 8
    )


def weight_bits(layer: Layer) -> float:
    """All weights of a layer, in bits; those that are stored of a sparse one."""
    return layer.weight_elements * layer.weight_bits * layer.nonzero_fraction


def _inputs(layer: Layer) -> float:
    if not layer.is_product:
        return layer.input_elements * layer.input_bits / 8
    rows, columns = _axes(layer)
    channels = layer.batch * layer.groups * layer.in_channels
    return channels * int(rows.extents[0]) * int(columns.extents[0]) * layer.input_bits / 8


def _axes(layer: Layer) -> tuple[Axis, Axis]:
    return (
        axis(layer.out_height, layer.kernel_height, layer.stride, layer.input_height),
        axis(layer.out_width, layer.kernel_width, layer.stride, layer.input_width),
    )


def best_tiling(
    layer: Layer, buffers: Buffers, orders: Sequence[str] = ORDERS, pictures: int = 1
) -> tuple[Tiling, Traffic]:
    """The tiling of least traffic of all that fit, in any of the loop orders; of equals that of the fewest tiles.

    All integer tile sizes are covered: for every number of parts of rows, columns and input channels the smallest tile
    is tried, with as many output channels as then fit, since more of them never cost more. Groups and the repetitions
    of a batch follow one another, `pictures` share the weights. A layer that is no product is streamed through once.

    Raises UserError when not even tiles of one element fit. Source of the equations: ROMANet (see above).
    """
    tiling, traffic = _search(replace(layer, name=""), buffers, tuple(orders), pictures)
    if tiling is None:
        smallest = layer.kernel_height * layer.kernel_width
        raise UserError(
            f"no tile of layer '{layer.name}' fits the buffers {buffers}",
            hint=f"the weights of a kernel alone take {smallest * layer.weight_bits / 8:g} bytes, its inputs "
            f"{smallest * layer.input_bits / 8:g}",
        )
    return tiling, traffic


@lru_cache(maxsize=65536)
def _search(layer: Layer, buffers: Buffers, orders: tuple[str, ...], pictures: int) -> tuple[Tiling | None, Traffic]:
    if not layer.is_product:
        whole = Tiling(orders[0], layer.out_channels, layer.in_channels, layer.out_height, layer.out_width, pictures)
        return whole, compulsory(layer, pictures)
    least = compulsory(layer, pictures).total_bytes
    rows, columns = _axes(layer)
    found: tuple[Tiling | None, Traffic] = (None, Traffic())
    for candidates in (Axis(*(values[:1] for values in columns)), columns):  # full rows first: often that is enough
        found = _best(layer, buffers, orders, pictures, rows, candidates)
        if found[0] is not None and found[1].total_bytes <= least:
            break
    return found


class _Candidates(NamedTuple):
    """Tile sizes and numbers of tiles, flat and of one length."""

    tm: Ints
    tn: Ints
    tr: Ints
    tc: Ints
    tp: Ints
    parts: dict[str, Ints]
    inputs: Ints  # that all places read of one channel


def _best(
    layer: Layer, buffers: Buffers, orders: Sequence[str], pictures: int, rows: Axis, columns: Axis
) -> tuple[Tiling | None, Traffic]:
    tiles = _candidates(layer, buffers, pictures, rows, columns)
    if not len(tiles.tm):
        return None, Traffic()
    count = tiles.parts["m"] * tiles.parts["n"] * tiles.parts["s"]
    best: tuple[float, int] | None = None
    for order in orders:
        total = _total(_moved(layer, buffers, order, tiles.parts, tiles.inputs, pictures))
        least = float(total.min())
        at = int(np.flatnonzero(total == least)[np.argmin(count[total == least])])
        if best is None or (least, int(count[at])) < best:
            best, tiling = (least, int(count[at])), Tiling(order, *(int(each[at]) for each in tiles[:5]))
    return tiling, traffic_of(layer, tiling, buffers.partial_sum_bits, pictures)


def _candidates(layer: Layer, buffers: Buffers, pictures: int, rows: Axis, columns: Axis) -> _Candidates:
    grid = np.meshgrid(
        np.arange(len(rows.tiles)), np.arange(len(columns.tiles)), divisions(layer.in_channels), divisions(pictures),
        indexing="ij", sparse=True,
    )  # fmt: skip
    r, c, tn, tp = grid
    tr, tc, nn = rows.tiles[r], columns.tiles[c], -(-layer.in_channels // tn)
    input_tile = tn * tp * rows.largest[r] * columns.largest[c] * layer.input_bits
    per_channel = tn * (layer.kernel_height * layer.kernel_width * layer.weight_bits * layer.nonzero_fraction)
    sum_bits = np.where(nn > 1, buffers.partial_sum_bits or layer.output_bits, layer.output_bits)
    per_output = tr * tc * tp * sum_bits
    tm = _most_channels(buffers, input_tile, per_channel, per_output)
    index = np.nonzero(tm >= 1)
    tm = np.minimum(tm[index], layer.out_channels // layer.groups)
    nm = -(-(layer.out_channels // layer.groups) // tm)
    take = [np.broadcast_to(each, np.broadcast_shapes(*(g.shape for g in grid)))[index] for each in grid]
    r, c, tn, tp = take
    places = rows.parts[r] * columns.parts[c] * -(-pictures // tp)
    parts = {"m": nm, "n": -(-layer.in_channels // tn), "s": places}
    balanced = -(-(layer.out_channels // layer.groups) // nm)
    return _Candidates(balanced, tn, rows.tiles[r], columns.tiles[c], tp, parts, rows.extents[r] * columns.extents[c])


def _most_channels(buffers: Buffers, input_tile: Ints, per_channel: Floats, per_output: Ints) -> Ints:
    """How many output channels fit beside an input tile, all in bits; below 1 where nothing does."""
    if buffers.shared:
        return ((buffers.total_bytes * 8 - input_tile) // (per_channel + per_output)).astype(np.int64)
    most = np.minimum(buffers.weight_bytes * 8 // per_channel, buffers.output_bytes * 8 // per_output)
    return np.where(input_tile <= buffers.input_bytes * 8, most, 0).astype(np.int64)


def _moved(
    layer: Layer, buffers: Buffers, order: str, parts: dict[str, Ints], inputs: Ints, pictures: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Bytes of inputs, weights, outputs, and of partial sums there and back."""
    repeats = layer.batch * layer.groups
    sums = layer.output_elements * pictures * (buffers.partial_sum_bits or layer.output_bits) / 8
    return (
        fetches(order, "input", parts) * inputs * (repeats * layer.in_channels * pictures * layer.input_bits / 8),
        fetches(order, "weight", parts) * (weight_bits(layer) / 8),
        np.full(len(inputs), layer.output_elements * pictures * layer.output_bits / 8),
        (fetches(order, "output", parts) - 1) * (2 * sums),
    )


def _total(moved: tuple[Floats, Floats, Floats, Floats]) -> Floats:
    return moved[0] + moved[1] + moved[2] + moved[3]


def fetches(order: str, operand: str, parts: dict[str, Ints]) -> Ints:
    """How often each element of an operand is on the chip anew, for the numbers of tiles of each loop."""
    loop = _IRRELEVANT[operand]
    inside = np.ones_like(parts[loop])
    for other in order[order.index(loop) + 1 :]:
        inside = inside * parts[other]
    return np.where(inside > 1, parts[loop], 1)


def traffic_of(layer: Layer, tiling: Tiling, partial_sum_bits: int | None = None, pictures: int = 1) -> Traffic:
    """What a tiling of a layer moves; what overlaps of input tiles (the halo) is read as often as it is in one."""
    if not layer.is_product:
        return compulsory(layer, pictures)
    rows, columns = _axes(layer)
    r, c = (int(np.flatnonzero(a.tiles == t)[0]) for a, t in ((rows, tiling.rows), (columns, tiling.columns)))
    places = rows.parts[r] * columns.parts[c] * -(-pictures // tiling.pictures)
    channels = layer.out_channels // layer.groups
    parts = {
        "m": np.array([-(-channels // tiling.out_channels)]),
        "n": np.array([-(-layer.in_channels // tiling.in_channels)]),
        "s": np.array([places]),
    }
    inputs = np.array([rows.extents[r] * columns.extents[c]])
    buffers = Buffers(1, 1, 1, partial_sum_bits=partial_sum_bits)
    moved = [float(each[0]) for each in _moved(layer, buffers, tiling.order, parts, inputs, pictures)]
    return Traffic(moved[0], moved[1], moved[2], moved[3] / 2)


def reuse_order(layer: Layer) -> str:
    """ROMANet's loop order: the operand that is used the most often stays the longest.

    A weight is used at every place, an input by every kernel that covers it, an output in every sum. The loop that
    the first of them doesn't depend on is the innermost, that of the last the outermost.
    """
    kernel = layer.kernel_height * layer.kernel_width
    uses = {
        "weight": float(layer.out_height * layer.out_width),
        "input": layer.out_channels / layer.groups * kernel / layer.stride**2,
        "output": float(layer.in_channels * kernel),
    }
    return "".join(_IRRELEVANT[name] for name in sorted(uses, key=lambda name: uses[name]))


UNIFORM_CHANNELS = (1, 2, 3, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
UNIFORM_SIDES = (1, 2, 4, 7, 8, 13, 14, 16, 27, 28, 32, 55, 56, 112, 224)


def uniform_tiling(layers: Sequence[Layer], buffers: Buffers, order: str = OUTPUT_STATIONARY[0]) -> list[Tiling]:
    """One tile size for all layers, the best of those in `UNIFORM_CHANNELS` and `UNIFORM_SIDES` that fit every layer.

    Smaller layers take it whole. Raises UserError when none fits. Source: Zhang et al., "Optimizing FPGA-based
    Accelerator Design for Deep Convolutional Neural Networks", FPGA 2015, section 4.3.
    """
    grid = np.meshgrid(UNIFORM_CHANNELS, UNIFORM_CHANNELS, UNIFORM_SIDES, UNIFORM_SIDES, indexing="ij")
    tm, tn, tr, tc = (each.ravel() for each in grid)
    total, fits = np.zeros(len(tm)), np.ones(len(tm), bool)
    cut: list[tuple[Ints, ...]] = []
    for layer in layers:
        rows, columns = _axes(layer)
        r, c = _whole(rows, tr), _whole(columns, tc)
        channels = layer.out_channels // layer.groups
        m, n = _part(channels, tm), _part(layer.in_channels, tn)
        cut.append((m, n, rows.tiles[r], columns.tiles[c]))
        parts = {"m": -(-channels // m), "n": -(-layer.in_channels // n), "s": rows.parts[r] * columns.parts[c]}
        kernel = layer.kernel_height * layer.kernel_width
        most = _most_channels(
            buffers, n * rows.largest[r] * columns.largest[c] * layer.input_bits, n * kernel * float(layer.weight_bits),
            rows.tiles[r] * columns.tiles[c] * layer.output_bits,
        )  # fmt: skip
        fits &= most >= m
        total += _total(_moved(layer, buffers, order, parts, rows.extents[r] * columns.extents[c], 1))
    if not fits.any():
        raise UserError(f"no tile fits all layers in the buffers {buffers}")
    at = int(np.argmin(np.where(fits, total, np.inf)))
    return [Tiling(order, *(int(each[at]) for each in tile)) for tile in cut]


def _part(size: int, tile: Ints) -> Ints:
    """The smallest tiles that make as many parts of a size."""
    return -(-size // -(-size // np.minimum(tile, size)))


def _whole(one: Axis, tile: Ints) -> Ints:
    """Which of an axis' ways to cut it make as many parts as a tile of that size."""
    size = int(one.tiles[0])
    return np.searchsorted(one.parts, -(-size // np.minimum(tile, size)))
