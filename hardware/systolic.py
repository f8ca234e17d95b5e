"""A systolic array: cycles and memory accesses of a product, and beside it a core that fetches for every operation.

A product is rows x depth times depth x columns (a convolution's pixels, kernel and channels). Operands enter the array
at its edges and pass from multiplier to multiplier, so that a value read once is used as often as the array is wide;
a core without that reads both operands of every multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Accesses:
    """Words read from and written to the memory beside an array or a core, and instructions fetched."""

    reads: Numbers
    writes: Numbers
    instructions: Numbers


def cycles(rows: Numbers, columns: Numbers, depth: Numbers, height: int, width: int, stationary: str) -> Numbers:
    """Cycles of products (each an array of one number a layer) on an array of `height` x `width` multipliers.

    Output stationary: ceil(rows/H) ceil(columns/W) (depth + H + W - 2); weight stationary: ceil(depth/H)
    ceil(columns/W) (H + rows + H + W - 2), the first H to load the weights; input stationary the same with rows and
    columns exchanged. Source: Samajdar et al. 2018 (SCALE-Sim), whose report says one less.
    """
    edge = height + width - 2
    if stationary == "output":
        return _ceil(rows, height) * _ceil(columns, width) * (depth + edge)
    if stationary == "weight":
        return _ceil(depth, height) * _ceil(columns, width) * (height + rows + edge)
    return _ceil(depth, height) * _ceil(rows, width) * (height + columns + edge)


def array_accesses(
    rows: Numbers, columns: Numbers, depth: Numbers, height: int, width: int, stationary: str
) -> Accesses:
    """Words that cross the edges of the array: each operand once for each time that it passes through.

    Where the depth is in several pieces and the outputs do not stay, sums go out and come in again.
    """
    outputs = rows * columns
    none = np.zeros_like(outputs)
    if stationary == "output":
        reads = rows * depth * _ceil(columns, width) + columns * depth * _ceil(rows, height)
        return Accesses(reads, outputs, none)
    pieces = _ceil(depth, height)
    held, passing = (columns, rows) if stationary == "weight" else (rows, columns)
    reads = held * depth + passing * depth * _ceil(held, width) + outputs * (pieces - 1)
    return Accesses(reads, outputs * pieces, none)


def core_accesses(rows: Numbers, columns: Numbers, depth: Numbers) -> Accesses:
    """Of a core that loads both operands, multiplies and adds, an instruction each, and keeps the sum in a register."""
    macs = rows * columns * depth
    return Accesses(2 * macs, rows * columns, 4 * macs)


def _ceil(number: Numbers, unit: int) -> Numbers:
    return np.ceil(number / unit)
