"""Where a tile's words lie in the banks of an on-chip buffer, and what reading them costs.

An array of processing elements reads several words at once, say one for each of its rows. Each bank gives one word a
cycle, so words that lie in the same bank wait for each other. ROMANet spreads a tile over the banks; stored block by
block, a tile fills one bank after the other. Banks that hold nothing can be switched off.

Source: Putra et al., ROMANet, TVLSI 2021, for the mapping; Horowitz, ISSCC 2014, for energies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError

# Bytes of a memory, and picojoules of an access of 64 bits, 45 nm, 0.9 V. Of 8 KB read in later works' tables
# (PMC8934428, table 3), 32 KB and 1 MB remembered from Horowitz.
ACCESS_PICOJOULES = ((8 << 10, 10.0), (32 << 10, 20.0), (1 << 20, 100.0))
WORD_BITS = 64


@dataclass(frozen=True)
class Sram:
    """A buffer of equal banks, each with one port of `word_bytes`."""

    size_bytes: int
    banks: int = 8
    word_bytes: int = 8

    def __post_init__(self) -> None:
        if min(self.size_bytes, self.banks, self.word_bytes) < 1 or self.size_bytes % (self.banks * self.word_bytes):
            raise UserError(f"a buffer has banks of whole words, got {self}")

    @property
    def words_per_bank(self) -> int:
        """That a bank holds."""
        return self.size_bytes // (self.banks * self.word_bytes)


@dataclass(frozen=True)
class SramCost:
    """What reads cost: cycles, of these those that words of the same bank wait for each other, and energy."""

    accesses: int
    cycles: int
    conflict_cycles: int
    active_banks: int
    energy_joules: float


def access_joules(size_bytes: int, word_bytes: int = 8) -> float:
    """Of a word in a memory of that size: between Horowitz's points in proportion to a power of the size."""
    sizes, energies = np.log([point[0] for point in ACCESS_PICOJOULES]), np.log([p[1] for p in ACCESS_PICOJOULES])
    slope = np.diff(energies) / np.diff(sizes)
    at = np.log(size_bytes)
    if at <= sizes[0]:
        energy = energies[0] + slope[0] * (at - sizes[0])
    elif at >= sizes[-1]:
        energy = energies[-1] + slope[-1] * (at - sizes[-1])
    else:
        energy = np.interp(at, sizes, energies)
    return float(np.exp(energy)) * 1e-12 * word_bytes * 8 / WORD_BITS


def bank_of(words: NDArray[np.int64], sram: Sram, mapping: Literal["interleaved", "blocked"]) -> NDArray[np.int64]:
    """The bank of each word of a tile: its neighbours in other banks, or in the same as long as that has room."""
    if mapping == "interleaved":
        return words % sram.banks
    return (words // sram.words_per_bank) % sram.banks


def read_cost(
    tile: tuple[int, int, int], together: tuple[int, int, int], sram: Sram,
    mapping: Literal["interleaved", "blocked"] = "interleaved",
) -> SramCost:  # fmt: skip
    """Read a tile of (channels, rows, columns) words once, a block of `together` words in each step.

    Words are stored column by column, row by row, channel by channel. A step takes as many cycles as the fullest bank
    has of its words. Raises UserError for a tile that doesn't fit.
    """
    count = int(np.prod(tile))
    if count > sram.words_per_bank * sram.banks:
        raise UserError(f"a tile of {count} words doesn't fit a buffer of {sram.words_per_bank * sram.banks}")
    words = np.arange(count, dtype=np.int64).reshape(tile)
    index = np.indices(tile) // np.array(together).reshape(3, 1, 1, 1)
    steps = -(-np.array(tile) // np.array(together))
    step = np.ravel_multi_index(tuple(index), tuple(steps)).ravel()
    banks = bank_of(words.ravel(), sram, mapping)
    load = np.zeros((int(steps.prod()), sram.banks), np.int64)
    np.add.at(load, (step, banks), 1)
    cycles = int(load.max(axis=1).sum())
    ideal = int((-(-load.sum(axis=1) // sram.banks)).sum())
    energy = count * access_joules(sram.size_bytes // sram.banks, sram.word_bytes)
    return SramCost(count, cycles, cycles - ideal, len(np.unique(banks)), energy)
