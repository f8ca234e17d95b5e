"""Which layers run together, so that what flows between them never leaves the chip.

Layers in a row form a group: the rows of what they make are cut into N parts, and part after part goes through all of
them. Between two layers stay the rows of the part and those above that the next part's kernels still need; the first
layer's inputs come from DRAM, the last one's outputs go there. If one layer's output is cut into N parts, that of the
next can only be cut into the same N, or else the first is written to DRAM and the group ends: the constraint of Zheng
et al. A group of one layer is tiled by itself (`tiling.py`). Dynamic programming finds the groups and the N of each
that move the least bytes; with this constraint every schedule can be run.

Source: Zheng et al., "Optimizing Off-Chip Memory Access for Deep Neural Network Accelerator", IEEE TCAS-II 69(4), 2022,
reconstructed from its abstract; where rows live and what is held of weights are our own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError
from .tiling import ORDERS, Buffers, Tiling, Traffic, best_tiling, compulsory, divisions, padding, span, weight_bits
from .workload import Layer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Link:
    """How a layer's output reaches the next layer's input.

    It is `share` of that input (the rest comes from DRAM), and goes through pooling (a kernel and its stride) or
    upsampling on its way. `kept` says that others read it, too, so that it is written to DRAM whatever comes next.
    """

    share: float = 1.0
    kept: bool = False
    pool_kernel: int = 1
    pool_stride: int = 1
    upsample: int = 1


@dataclass(frozen=True)
class Group:
    """Layers from `first` to `last` that run part by part; `pinned` ones keep their weights on the chip throughout.

    `ends[i][n]` is the output row that layer first + i has come to after part n.
    """

    first: int
    last: int
    parts: int = 1
    pinned: tuple[int, ...] = ()
    ends: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """A group, what each of its layers moves, and the tiles of the first."""

    group: Group
    traffic: tuple[Traffic, ...]
    tiling: Tiling

    @property
    def total_bytes(self) -> float:
        """Of all its layers."""
        return sum(each.total_bytes for each in self.traffic)


@dataclass(frozen=True)
class LayerTraffic:
    """What a layer moves, and the tiles in which it does."""

    layer: Layer
    tiling: Tiling
    traffic: Traffic


@dataclass(frozen=True)
class Schedule:
    """The groups in order, and the traffic of every layer."""

    groups: tuple[Group, ...]
    layers: tuple[LayerTraffic, ...]

    @property
    def total(self) -> Traffic:
        """Of all layers."""
        return sum((each.traffic for each in self.layers), Traffic())


def traffic(
    layers: Sequence[Layer], buffers: Buffers, links: Sequence[Link | None] | None = None,
    orders: Sequence[str] = ORDERS,
) -> Schedule:  # fmt: skip
    """The schedule of least DRAM traffic: the best tiling of each layer, and with `links` the best groups.

    `links[i]` joins layers i and i + 1; None says that the one's output is not what the other reads. Without links
    each layer is by itself. Raises UserError for links that don't fit the layers, or a layer that fits no buffer.
    """
    if links is not None and len(links) != len(layers) - 1:
        raise UserError(f"{len(layers)} layers have {len(layers) - 1} links between them, got {len(links)}")
    tilings = [best_tiling(layer, buffers, orders) for layer in layers]
    least, chosen = [0.0], list[Plan]()  # of the layers before each, and the group that comes last of them
    for last in range(len(layers)):
        options = [Plan(Group(last, last), (tilings[last][1],), tilings[last][0])]
        if links is not None:
            options += _groups_ending_at(layers, links, buffers, last)
        chosen.append(min(options, key=lambda plan: least[plan.group.first] + plan.total_bytes))
        least.append(least[chosen[-1].group.first] + chosen[-1].total_bytes)
    return _traced_back(layers, chosen)


def _traced_back(layers: Sequence[Layer], chosen: Sequence[Plan]) -> Schedule:
    groups: list[Group] = []
    moved: list[LayerTraffic] = []
    at = len(layers)
    while at > 0:
        plan = chosen[at - 1]
        groups.insert(0, plan.group)
        own = layers[plan.group.first : at]
        tilings = [plan.tiling, *(_tiling_of_part(layer, plan.group.parts) for layer in own[1:])]
        moved = [LayerTraffic(*each) for each in zip(own, tilings, plan.traffic, strict=True)] + moved
        at = plan.group.first
    return Schedule(tuple(groups), tuple(moved))


def _tiling_of_part(layer: Layer, parts: int) -> Tiling:
    """All channels of the rows of a part at once."""
    rows = -(-layer.out_height // min(parts, layer.out_height))
    return _whole_rows(layer, rows)


def _whole_rows(layer: Layer, rows: int) -> Tiling:
    tiles = divisions(layer.out_height)
    fitting = int(tiles[tiles <= max(rows, 1)][0])
    return Tiling("smn", layer.out_channels // layer.groups, layer.in_channels, fitting, layer.out_width)


def _groups_ending_at(
    layers: Sequence[Layer], links: Sequence[Link | None], buffers: Buffers, last: int
) -> Iterator[Plan]:
    """All groups of two or more layers that end with `last` and fit; what doesn't fit never does with more layers."""
    height = layers[last].out_height
    for parts in np.unique(-(-height // divisions(height))).tolist():
        planner = _Planner(layers[last], buffers, last, parts)
        for at in range(last - 1, -1, -1):
            link = links[at]
            if link is None or not _joins(layers[at], layers[at + 1], parts):
                break
            planner.prepend(layers[at], link)
            found = planner.plan()
            if found is None:
                break
            yield found


def group_of(
    layers: Sequence[Layer], links: Sequence[Link | None], buffers: Buffers, first: int, last: int, parts: int
) -> Plan | None:
    """The group of layers `first` to `last` in so many parts, and what each moves; None if it can't be run."""
    planner = _Planner(layers[last], buffers, last, parts)
    for at in range(last - 1, first - 1, -1):
        link = links[at]
        if link is None or not _joins(layers[at], layers[at + 1], parts):
            return None
        planner.prepend(layers[at], link)
    return planner.plan()


def _joins(one: Layer, other: Layer, parts: int) -> bool:
    """Whether a layer can be followed by the next in parts; whole pictures are needed for a normalization's sums."""
    whole = parts == 1 or "normalization" not in (one.kind, other.kind)
    return one.batch == other.batch and whole


class _Between(NamedTuple):
    """Rows of a layer's input that are on the chip, in bits: while it runs on a part, and between two parts."""

    active: int
    halo: int


class _Planner:
    """Works out groups that end with one layer, for one number of parts; layers are put before it one by one.

    `ends` are the output rows that each layer has come to after each part, `rows` the input rows that the first reads.
    """

    def __init__(self, layer: Layer, buffers: Buffers, last: int, parts: int) -> None:
        self.buffers, self.last, self.parts = buffers, last, parts
        self.layers, self.links = [layer], list[Link]()
        height = -(-layer.out_height // parts)
        self.ends = [np.minimum(np.arange(1, parts + 1) * height, layer.out_height)]
        self.rows = input_rows(layer, self.ends[0])
        self.between: list[_Between] = []
        self.weights, self.kernels = [_own_weights(layer)], [_kernel_bits(layer)]

    def prepend(self, layer: Layer, link: Link) -> None:
        """Put a layer before the others."""
        self.ends.insert(0, rows_before(link, self.rows[1], layer.out_height))
        self.between.insert(0, _between(self.layers[0], link, self.rows[0], rows_after(link, self.ends[0])))
        self.rows = input_rows(layer, self.ends[0])
        self.layers.insert(0, layer)
        self.links.insert(0, link)
        self.weights.insert(0, _own_weights(layer))
        self.kernels.insert(0, _kernel_bits(layer))

    def plan(self) -> Plan | None:
        """The group and what each of its layers moves; None if it doesn't fit."""
        free = self._free(self.between)
        if free is None:
            return None
        free_input, free_output, weight_space = free
        pinned = self._pinned(weight_space)
        if pinned is None or free_output < self.layers[-1].out_width * self.layers[-1].output_bits:
            return None
        left = weight_space - sum(self.weights[at] for at in pinned)
        head = self._head(self.rows, self.ends[0], free_input, left, 0 in pinned)
        if head is None:
            return None
        moved = (head[0], *(self._body(at, at in pinned) for at in range(1, len(self.layers))))
        rows = tuple(tuple(each.tolist()) for each in self.ends)
        first = self.last + 1 - len(self.layers)
        group = Group(first, self.last, self.parts, tuple(first + at for at in sorted(pinned)), rows)
        return Plan(group, moved, _whole_rows(self.layers[0], head[1]))

    def _free(self, between: Sequence[_Between]) -> tuple[float, float, float] | None:
        """Bits that are left for tiles of the first input, of the last output, and for weights; None if none are.

        The input of layer i, from the last one backwards, is in the input buffer, the output buffer, the input buffer
        and so on; the first layer's tiles are in the one that its output isn't in.
        """
        sides: tuple[list[_Between], list[_Between]] = ([], [])
        for back, rows in enumerate(reversed(between)):
            sides[back % 2].append(rows)
        halos = [sum(rows.halo for rows in side) for side in sides]
        peaks = [
            halo + max((rows.active - rows.halo for rows in side), default=0)
            for halo, side in zip(halos, sides, strict=True)
        ]
        head = len(between) % 2  # the side of the first input
        if self.buffers.shared:
            return self._free_of_shared(between, sum(halos))
        sizes = (self.buffers.input_bytes * 8, self.buffers.output_bytes * 8)
        if any(peak > size for peak, size in zip(peaks, sizes, strict=True)):
            return None
        return sizes[head] - halos[head], sizes[1] - halos[1], self.buffers.weight_bytes * 8

    def _free_of_shared(self, between: Sequence[_Between], halos: int) -> tuple[float, float, float] | None:
        """The same of one memory: a layer's input and output are there at once; half of what is left is weights'."""
        growth = [rows.active - rows.halo for rows in between]
        pairs = [sum(pair) for pair in itertools.pairwise(growth)]
        least = _input_tile_bits(self.layers[0], 1) + growth[0]
        out = growth[-1] + self.layers[-1].out_width * self.layers[-1].output_bits
        left = self.buffers.total_bytes * 8 - halos - max([*pairs, least, out])
        if left <= 0:
            return None
        spare = left / 2
        out_row = self.layers[-1].out_width * self.layers[-1].output_bits
        return _input_tile_bits(self.layers[0], 1) + spare, out_row, spare

    def _pinned(self, space: float) -> set[int] | None:
        """The layers whose weights stay, the largest that fit beside a kernel of each other; None: that doesn't fit.

        With a single part every weight is read once anyhow.
        """
        pinned: set[int] = set()
        if max(self.kernels) > space:
            return None
        if self.parts == 1:
            return pinned
        used = 0.0
        for at in sorted(range(len(self.layers)), key=lambda at: -self.weights[at]):
            others = (kernel for other, kernel in enumerate(self.kernels) if other != at and other not in pinned)
            if used + self.weights[at] + max(others, default=0) <= space:
                pinned.add(at)
                used += self.weights[at]
        return pinned

    def _head(
        self, rows: tuple[Ints, Ints], ends: Ints, free_input: float, left: float, pinned: bool
    ) -> tuple[Traffic, int] | None:
        """The first layer's traffic and the rows of its tiles; None if no tile of all channels and full rows fits.

        Its inputs come again for each tile of weights, or its weights again for each tile of inputs.
        """
        layer = self.layers[0]
        row, weights = _input_row_bits(layer), self.weights[0] / 8
        fit = int(free_input // row)
        tile = layer.out_height
        if fit < _rows_of_input(layer):
            tile = (fit - layer.kernel_height) // layer.stride + 1 if layer.is_product else fit
        if tile < 1:
            return None
        made = np.diff(ends, prepend=0)
        tiles = -(-made // tile)
        again = max(layer.kernel_height - layer.stride, 0) * np.maximum(tiles - 1, 0) * layer.is_product
        inputs = float((rows[1] - rows[0] + again)[made > 0].sum()) * row / 8
        loads = 1 if pinned else self.parts
        channels = layer.out_channels // layer.groups
        fitting = channels if pinned or not weights else max(int(left // self.kernels[0]), 1)
        nm = -(-channels // fitting)
        if nm == 1 or int(tiles.max()) <= 1:
            moved = (inputs, weights * loads)
        else:
            moved = min((inputs, weights * int(tiles.sum())), (inputs * nm, weights * loads), key=sum)
        return self._moved(0, *moved), min(tile, int(made.max()))

    def _body(self, at: int, pinned: bool) -> Traffic:
        """A layer whose input is on the chip: what is not of it comes from DRAM, as do weights for each part."""
        share = self.links[at - 1].share
        rest = (1 - share) * _input_bits(self.layers[at]) / 8 if share < 1 else 0.0
        return self._moved(at, rest, self.weights[at] / 8 * (1 if pinned else self.parts))

    def _moved(self, at: int, inputs: float, weights: float) -> Traffic:
        """Of all repetitions; an output that others read is written."""
        layer = self.layers[at]
        written = at == len(self.layers) - 1 or self.links[at].kept
        return Traffic(
            inputs * layer.batch, weights * layer.batch, layer.output_elements * layer.output_bits / 8 * written
        )


def input_rows(layer: Layer, ends: Ints) -> tuple[Ints, Ints]:
    """The input rows that each part reads, for the output rows that a layer has come to: (parts,) twice."""
    begins = np.concatenate([[0], ends[:-1]])
    if not layer.is_product:
        return begins, ends
    before = padding(layer.out_height, layer.kernel_height, layer.stride, layer.input_height)
    return span(begins, ends, layer.kernel_height, layer.stride, before, layer.input_height)


def rows_before(link: Link, stop: Ints, height: int) -> Ints:
    """The rows that a layer has to have made for its next to see the rows up to `stop`; in the end all of them."""
    pooled = (stop - 1) * link.pool_stride + link.pool_kernel
    rows = np.clip(np.where(stop > 0, -(-pooled // link.upsample), 0), 0, height)
    rows[-1] = height
    return np.maximum.accumulate(rows)


def rows_after(link: Link, made: Ints) -> Ints:
    """The rows that the next layer sees of so many."""
    return np.clip((made * link.upsample - link.pool_kernel) // link.pool_stride + 1, 0, None)


def _between(layer: Layer, link: Link, begin: Ints, reached: Ints) -> _Between:
    """Rows from the first that a part reads to the last that is there; a pooled row in the making is one more."""
    row = _input_row_bits(layer)
    extra = int(link.pool_kernel > 1)
    reached = np.minimum(reached, _rows_of_input(layer))
    active = int((reached - begin).max()) + extra
    halo = int(np.clip(reached[:-1] - begin[1:], 0, None).max(initial=0)) + extra
    return _Between(active * row, halo * row)


def _input_row_bits(layer: Layer) -> int:
    """A row of one repetition's inputs, all channels."""
    if not layer.is_product:
        return layer.operands * layer.out_channels * layer.out_width * layer.input_bits
    return layer.groups * layer.in_channels * layer.input_width * layer.input_bits


def _input_bits(layer: Layer) -> float:
    """The inputs of one repetition that are used."""
    return compulsory(layer).input_bytes * 8 / layer.batch


def _input_tile_bits(layer: Layer, rows: int) -> int:
    return _input_row_bits(layer) * min((rows - 1) * layer.stride + layer.kernel_height, layer.input_height)


def _rows_of_input(layer: Layer) -> int:
    return layer.input_height if layer.is_product else layer.out_height


def _own_weights(layer: Layer) -> float:
    """The weights of one repetition, in bits."""
    return weight_bits(layer) / layer.batch


def _kernel_bits(layer: Layer) -> float:
    """The weights of one output channel."""
    return weight_bits(layer) / layer.batch / layer.out_channels
