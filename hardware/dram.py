"""What a schedule costs in DRAM: row hits, misses and conflicts, time, and energy.

A `Mapping` says how operands are stored and how an address is split into column, channel, bank and row. Rows are left
open. The controller knows the next `queue_bursts` bursts, so that it opens a row while other banks still send; what it
can't hide, the bus waits for.

Sources: Putra et al., "DRMap", DAC 2020 (arXiv 2004.10341) and "ROMANet", TVLSI 2021, for the mappings; JESD79-3 for
the rules of time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dram_profile import Dram
from .schedule import LayerTraffic
from .streams import INPUT, OPERANDS, OUTPUT, PARTIAL_SUM, PIECE_BYTES, WEIGHT, Stream, step_count, stream
from .tiling import Tiling, Traffic
from .workload import Layer

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
QUEUE_BURSTS = 32
ROUNDS = 4  # until pauses and what follows from them agree
WINDOWS, WINDOW_PIECES = 5, 2000  # how much of a long stream is looked at, in parts that lie in one row


@dataclass(frozen=True)
class Mapping:
    """Operands that are stored tile by tile, and what of an address counts up first: from `levels[0]` on."""

    name: str
    contiguous: frozenset[str] = frozenset()
    levels: tuple[str, ...] = ("channel", "column", "bank", "row")


TILES = frozenset(OPERANDS)
MAPPINGS = {
    mapping.name: mapping
    for mapping in (
        Mapping("row-major"),
        Mapping("row-major, bank by bank", levels=("channel", "column", "row", "bank")),
        Mapping("weights by tiles", frozenset({"weight"})),
        Mapping("by tiles", TILES),
        Mapping("by tiles, bank by bank", TILES, ("channel", "column", "row", "bank")),
        Mapping("romanet", TILES, ("column", "channel", "bank", "row")),
    )
}


@dataclass(frozen=True)
class DramCost:
    """What reads and writes cost. Hits, misses (of a closed bank) and conflicts (another row was open) are of bursts.

    `stall_s` is the part of `time_s` in which the bus waits for rows, `hidden_s` the time of opening rows that it did
    not wait for. Energy is that of operations (`access_joules`), and of standby and refreshing for the time.
    """

    read_bursts: float = 0.0
    write_bursts: float = 0.0
    row_hits: float = 0.0
    row_misses: float = 0.0
    row_conflicts: float = 0.0
    time_s: float = 0.0
    stall_s: float = 0.0
    hidden_s: float = 0.0
    activate_joules: float = 0.0
    read_joules: float = 0.0
    write_joules: float = 0.0
    standby_joules: float = 0.0
    refresh_joules: float = 0.0

    @property
    def activations(self) -> float:
        """Rows opened."""
        return self.row_misses + self.row_conflicts

    @property
    def access_joules(self) -> float:
        """Of opening rows, reading and writing."""
        return self.activate_joules + self.read_joules + self.write_joules

    @property
    def energy_joules(self) -> float:
        """All of it."""
        return self.access_joules + self.standby_joules + self.refresh_joules

    def __add__(self, other: DramCost) -> DramCost:
        return DramCost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def cost(layers: Iterable[LayerTraffic], dram: Dram, mapping: Mapping) -> tuple[DramCost, ...]:
    """What each layer of a schedule costs."""
    return tuple(layer_cost(each.layer, each.tiling, each.traffic, dram, mapping) for each in layers)


def total(costs: Iterable[DramCost]) -> DramCost:
    """The sum."""
    return sum(costs, DramCost())


class Counts(NamedTuple):
    """Of each kind of run, (4,): bytes, bursts, rows opened in closed banks, rows opened in place of others, and
    seconds that the bus waits for rows, and that opening them took; and how often the bus turns round."""

    moved_bytes: Floats
    bursts: Floats
    misses: Floats
    conflicts: Floats
    stall_ns: Floats
    opening_ns: Floats
    turns: float

    def plus(self, other: Counts) -> Counts:
        """The sum."""
        return Counts(
            self.moved_bytes + other.moved_bytes,
            self.bursts + other.bursts,
            self.misses + other.misses,
            self.conflicts + other.conflicts,
            self.stall_ns + other.stall_ns,
            self.opening_ns + other.opening_ns,
            self.turns + other.turns,
        )


def layer_cost(layer: Layer, tiling: Tiling, traffic: Traffic, dram: Dram, mapping: Mapping) -> DramCost:
    """What a layer costs that moves `traffic` in the order of its tiles.

    Of a long walk through the tiles some windows are looked at, and scaled to the bytes of each operand.
    """
    counts = _sampled(replace(layer, name=""), tiling, _present(traffic), dram, mapping)
    moved = np.zeros(4)
    moved[[INPUT, WEIGHT, OUTPUT, PARTIAL_SUM]] = (
        traffic.input_bytes, traffic.weight_bytes, traffic.write_bytes, traffic.partial_sum_bytes,
    )  # fmt: skip
    factor = np.divide(moved, counts.moved_bytes, out=np.zeros(4), where=counts.moved_bytes > 0)
    return _cost(counts, factor, dram)


def _present(traffic: Traffic) -> tuple[str, ...]:
    """The operands that cross the bus at all."""
    moved = {"input": traffic.input_bytes, "weight": traffic.weight_bytes, "output": traffic.write_bytes}
    return tuple(name for name, count in moved.items() if count > 0)


@lru_cache(maxsize=16384)
def _sampled(layer: Layer, tiling: Tiling, operands: tuple[str, ...], dram: Dram, mapping: Mapping) -> Counts:
    steps = step_count(layer, tiling)
    window = max(1, WINDOW_PIECES // _pieces_of_a_step(layer, tiling, dram, mapping))
    if steps <= WINDOWS * window:
        return count_rows(stream(layer, tiling, mapping.contiguous, operands), dram, mapping)
    found = None
    for first in np.linspace(0, steps - window, WINDOWS).astype(int).tolist():
        runs = stream(layer, tiling, mapping.contiguous, operands, (first, first + window))
        counts = count_rows(runs, dram, mapping, was_closed=first == 0)
        found = counts if found is None else found.plus(counts)
    assert found is not None
    return found


def _pieces_of_a_step(layer: Layer, tiling: Tiling, dram: Dram, mapping: Mapping) -> int:
    """Roughly, at most: runs, or rows (bursts, where columns don't count up first) of all bytes."""
    unit_bytes = dram.burst_bytes * _unit(dram, mapping)
    if not layer.is_product:
        return 4 + 2 * (layer.operands + 1) * PIECE_BYTES // unit_bytes
    rows = tiling.rows * layer.stride + layer.kernel_height
    columns = tiling.columns * layer.stride + layer.kernel_width
    kernel = layer.kernel_height * layer.kernel_width
    lines = {
        "input": (tiling.in_channels * rows, columns * layer.input_bits),
        "weight": (tiling.out_channels, tiling.in_channels * kernel * layer.weight_bits),
        "output": (tiling.out_channels * tiling.rows, tiling.columns * layer.output_bits),
    }
    found = 4
    for name, (runs, bits) in lines.items():
        units = runs * bits // (8 * unit_bytes)
        found += units if name in mapping.contiguous else max(runs, units)
    return found


def _sizes(dram: Dram) -> dict[str, int]:
    """Of the levels of an address."""
    o = dram.organization
    return {"column": dram.row_bytes // dram.burst_bytes, "channel": o.channels, "bank": o.banks, "row": o.rows}


def _unit(dram: Dram, mapping: Mapping) -> int:
    """How many bursts that follow each other, in one channel where channels take turns, lie in one row."""
    sizes = _sizes(dram)
    levels = [level for level in mapping.levels if sizes[level] > 1]
    together = levels[:1] == ["column"] or levels[:2] == ["channel", "column"]
    return sizes["column"] if together else 1


def count_rows(runs: Stream, dram: Dram, mapping: Mapping, was_closed: bool = True) -> Counts:
    """Follow a stream through the open rows of all banks; at its start they are closed, or else others are open."""
    pieces = _pieces(runs, dram, mapping)
    channel, bank, row, bursts, operand = pieces
    opens, fresh = _openings(channel * dram.organization.banks + bank, row)
    stall, opening = np.zeros(len(row)), np.zeros(len(row))
    for each in np.unique(channel):
        own = np.flatnonzero(channel == each)
        stall[own], opening[own] = _waits(bank[own], bursts[own], opens[own], operand[own] == OUTPUT, dram)
    misses = opens & fresh & was_closed
    closed = _by_kind(operand, misses)
    return Counts(
        _by_kind(runs.operand, runs.length),
        _by_kind(operand, bursts),
        closed,
        _by_kind(operand, opens) - closed,
        _by_kind(operand, stall),
        _by_kind(operand, opening),
        float(np.count_nonzero(np.diff((runs.operand == OUTPUT).astype(int)) == 1)),
    )


def _by_kind(operand: Ints, values: Ints | Floats | Bools) -> Floats:
    """The sum of values of each kind of run, (4,)."""
    return np.bincount(operand, values, 4).astype(np.float64)


class _Pieces(NamedTuple):
    """Parts of runs that lie in one row: where, in how many bursts, and of what: (pieces,) each."""

    channel: Ints
    bank: Ints
    row: Ints
    bursts: Ints
    operand: Ints


def _pieces(runs: Stream, dram: Dram, mapping: Mapping) -> _Pieces:
    """Cut runs where a row ends, or, where columns don't count up first or next to channels, into bursts.

    Where channels count up first, each has every so-manieth burst of a run, which for it are neighbours.
    """
    sizes, unit = _sizes(dram), _unit(dram, mapping)
    levels = [level for level in mapping.levels if sizes[level] > 1]
    begin, end = runs.start // dram.burst_bytes, (runs.start + runs.length - 1) // dram.burst_bytes
    operand, channel = runs.operand, np.zeros_like(begin)
    if unit > 1 and levels[0] == "channel":
        channels = sizes["channel"]
        ways = np.arange(min(channels, int((end - begin).max(initial=0)) + 1))
        at = begin[:, None] + ways  # the first burst in each channel
        there = at <= end[:, None]
        operand, channel = np.repeat(operand, there.sum(axis=1)), (at % channels)[there]
        end = (at // channels + (end[:, None] - at) // channels)[there]
        begin, levels = (at // channels)[there], levels[1:]
    first = begin // unit
    count = end // unit - first + 1
    of = np.repeat(np.arange(len(count)), count)
    at = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    bursts = np.minimum(end[of], (at + 1) * unit - 1) - np.maximum(begin[of], at * unit) + 1
    digits = {"channel": channel[of], "bank": np.zeros_like(at), "row": np.zeros_like(at)}
    rest = at
    for level in levels[1:] if unit > 1 else levels:
        rest, digits[level] = np.divmod(rest, sizes[level])
    digits["row"] = digits["row"] + rest * dram.organization.rows  # beyond the capacity: another device's rows
    return _Pieces(digits["channel"], digits["bank"], digits["row"], bursts, operand[of])


def _openings(bank: Ints, row: Ints) -> tuple[Bools, Bools]:
    """Of each piece, whether its row has to be opened, and whether it is the first of its bank."""
    order = np.argsort(bank, kind="stable")
    new_bank = np.diff(bank[order], prepend=-1) != 0
    new_row = np.diff(row[order], prepend=-1) != 0
    opens, fresh = np.empty(len(row), bool), np.empty(len(row), bool)
    opens[order], fresh[order] = new_bank | new_row, new_bank
    return opens, fresh


def _waits(bank: Ints, bursts: Ints, opens: Bools, writes: Bools, dram: Dram) -> tuple[Floats, Floats]:
    """How long the bus of a channel waits before each piece, and how long opening its row takes, in ns.

    A row can be closed when its bank's last access is done and has recovered, but no sooner than the controller knows
    of the next. Between two openings of a bank lies its row cycle, and no more than four in a window of four.
    """
    t = dram.timing
    length = bursts * t.burst_ns
    previous, opened = _last_of_the_bank(bank, opens)
    first = previous < 0
    recovery = np.where(writes[previous], t.twr_ns, max(t.trtp_ns - t.burst_ns, 0))
    need = np.where(first, 0, t.trp_ns + recovery) + t.trcd_ns
    sent = np.cumsum(bursts) - bursts
    seen = np.maximum(sent - QUEUE_BURSTS, 0)  # the burst that was sent when the controller came to know of this piece
    source = np.searchsorted(sent, seen, "right") - 1
    ahead = seen - sent[source]
    stall = np.zeros(len(bank))
    for number in range(ROUNDS):  # a pause gives time to what comes after it
        begin = np.cumsum(length + stall) - length
        known = begin - stall - np.where(sent < QUEUE_BURSTS, 0, begin[source] + ahead * t.burst_ns)
        since = np.where(first, begin - stall, begin - stall - (begin[previous] + length[previous]))
        cycle = np.where(opened >= 0, t.trc_ns - (begin - stall - begin[opened]), 0)
        wait = np.where(opens, np.maximum(np.maximum(need - np.minimum(since, known), cycle), 0), 0.0)
        stall = (stall + wait) / 2 if number else wait
    floor = np.count_nonzero(opens) * max(t.trrd_ns, t.tfaw_ns / 4) - (length.sum() + stall.sum())
    if floor > 0:
        stall = stall + opens * (floor / np.count_nonzero(opens))
    return stall, np.where(opens, need, 0.0)


def _last_of_the_bank(bank: Ints, opens: Bools) -> tuple[Ints, Ints]:
    """Of each piece, the last piece before it in its bank, and the last that opened a row; -1 for none."""
    order = np.argsort(bank, kind="stable")
    place = np.arange(len(bank))
    start = np.maximum.accumulate(np.where(np.diff(bank[order], prepend=-1) != 0, place, 0))  # of the bank
    opening = np.concatenate([[-1], np.maximum.accumulate(np.where(opens[order], place, -1))[:-1]])
    previous, opened = np.empty(len(bank), np.int64), np.empty(len(bank), np.int64)
    previous[order] = np.where(place > start, order[place - 1], -1)
    opened[order] = np.where(opening >= start, order[opening], -1)
    return previous, opened


def _cost(counts: Counts, factor: Floats, dram: Dram) -> DramCost:
    """Energies and times of counts of each kind of run, times a factor for each."""
    t, channels = dram.timing, dram.organization.channels
    bursts, misses, conflicts = counts.bursts * factor, counts.misses * factor, counts.conflicts * factor
    opened = float(misses.sum() + conflicts.sum())
    reads, writes = float(bursts.sum() - bursts[OUTPUT]), float(bursts[OUTPUT])
    stall = float((counts.stall_ns * factor).sum())
    turns = counts.turns * float(factor[OUTPUT]) * (t.trtw_ns + t.twtr_ns + t.tcl_ns)
    busy_ns = (float(bursts.sum()) * t.burst_ns + stall) / channels + turns
    time_s = busy_ns * 1e-9 / (1 - t.trfc_ns / t.trefi_ns)
    return DramCost(
        read_bursts=reads,
        write_bursts=writes,
        row_hits=float(bursts.sum()) - opened,
        row_misses=float(misses.sum()),
        row_conflicts=float(conflicts.sum()),
        time_s=time_s,
        stall_s=stall * 1e-9 / channels,
        hidden_s=max(float((counts.opening_ns * factor).sum()) - stall, 0.0) * 1e-9 / channels,
        activate_joules=opened * dram.activate_joules,
        read_joules=reads * dram.read_joules,
        write_joules=writes * dram.write_joules,
        standby_joules=dram.background_watts() * time_s,
        refresh_joules=dram.refresh_watts * time_s,
    )
