"""What an operation, a memory access, and an instruction cost in energy, in picojoules.

The figures are Horowitz's for 45 nm and 0.9 V (ISSCC 2014, "Computing's energy problem"). They are scaled to another
process by E = C V^2, the capacitance in proportion to the process's name and the voltage by `VOLTAGE`. Below about
20 nm a name is no length any more, so this is a lower bound of the true energy: a ratio between two designs of the same
process does not depend on it. DRAM is not scaled: its energy is its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

REFERENCE_NM, REFERENCE_VOLTS = 45.0, 0.9
# Typical supply at each process; between, the nearest one above. Remembered, not checked.
VOLTAGE = ((45, 0.9), (28, 0.9), (16, 0.8), (8, 0.75), (5, 0.7), (2, 0.65))
# A multiplication and an addition; sums of int8 products have 32 bits.
MULTIPLY_PJ = {"int8": 0.2, "float16": 1.1, "float32": 3.7}
ADD_PJ = {"int8": 0.1, "float16": 0.4, "float32": 0.9}
INSTRUCTION_PJ = 70.0  # fetched, decoded and controlled, with registers; remembered of the same talk
# A 64-bit word of a cache of so many bytes; between and beyond, a straight line in logarithms.
CACHE_PJ = ((8 * 2**10, 10.0), (32 * 2**10, 20.0), (2**20, 100.0))
# For each bit, with its interface. DDR3, LPDDR4, HBM2: accelergy's cacti plug-in (Chatterjee 2017 for DDR3); DDR4 and
# the later LPDDR remembered, not checked.
DRAM_PJ_PER_BIT = {
    "DDR3": 70.0, "DDR4": 25.0, "DDR5": 20.0, "LPDDR4": 8.0, "LPDDR4X": 7.0, "LPDDR5": 6.0, "LPDDR5X": 5.5, "HBM2": 3.9,
}  # fmt: skip


@dataclass(frozen=True)
class Energies:
    """Of a multiply-accumulate by data type, a byte of the on-chip memory, an instruction, and a byte of DRAM."""

    mac_pj: dict[str, float]
    on_chip_pj_per_byte: float
    instruction_pj: float
    dram_pj_per_byte: float


def process_factor(process_nm: float) -> float:
    """Energy in a process over that in 45 nm."""
    return process_nm / REFERENCE_NM * (volts(process_nm) / REFERENCE_VOLTS) ** 2


def volts(process_nm: float) -> float:
    """The typical supply of a process."""
    return next((volts for nm, volts in reversed(VOLTAGE) if process_nm <= nm), VOLTAGE[0][1])


def cache_pj_per_byte(size_bytes: float, factor: float = 1.0) -> float:
    """An access to an on-chip memory, by its size. Memories above 1 MB are banks of 1 MB: no access costs more."""
    sizes, energies = zip(*CACHE_PJ, strict=True)
    size = min(max(size_bytes, 512), sizes[-1])
    if size < sizes[0]:  # along the first line
        slope = math.log(energies[1] / energies[0]) / math.log(sizes[1] / sizes[0])
        word = float(energies[0] * (size / sizes[0]) ** slope)
    else:
        word = math.exp(float(np.interp(math.log(size), np.log(sizes), np.log(energies))))
    return float(factor * word / 8)


def energies(process_nm: float, on_chip_bytes: float, memory: str) -> Energies:
    """All of them for a device."""
    factor = process_factor(process_nm)
    return Energies(
        {name: factor * (MULTIPLY_PJ[name] + ADD_PJ[name]) for name in MULTIPLY_PJ},
        cache_pj_per_byte(on_chip_bytes, factor),
        factor * INSTRUCTION_PJ,
        8 * DRAM_PJ_PER_BIT[memory],
    )
