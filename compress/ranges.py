"""The range that the codes of an activation cover, chosen from its statistics."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .statistics import TensorStatistics

RangeMethod = Literal["minmax", "percentile", "mse"]
INT8_MAX = 127
LEVELS = 255  # steps between the ends, of eight bits; of a symmetric range one fewer: the code -128 is not used
KEPT_FRACTION = 0.9999  # of the values, by the percentile method
CANDIDATES = 60

Range = tuple[float, float]


def levels(bits: int) -> int:
    """Steps between the ends of a range that so many bits cover."""
    return int(2**bits - 1)


def choose_range(statistics: TensorStatistics, method: RangeMethod, symmetric: bool = False, bits: int = 8) -> Range:
    """Low and high end, 0 always between them: of all values, of nearly all, or of least mean square error.

    With `symmetric` both are the same distance from 0.
    """
    full = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if symmetric:
        full = _widened(full)
    if method == "minmax" or full[0] == full[1]:
        return full
    if method == "percentile":
        found = _percentile_range(statistics, full)
        return _widened(found) if symmetric else found
    chosen = _least_error_symmetric_range if symmetric else _least_error_range
    return chosen(statistics, full, bits)


def _widened(ends: Range) -> Range:
    """The smallest range around 0 that holds another, its ends the same distance from 0."""
    end = max(-ends[0], ends[1])
    return -end, end


def _percentile_range(statistics: TensorStatistics, full: Range) -> Range:
    share = np.cumsum(statistics.counts) / statistics.counts.sum()
    edges, outside = statistics.edges, (1 - KEPT_FRACTION) / 2
    low = edges[int(np.searchsorted(share, outside))]
    high = edges[min(int(np.searchsorted(share, 1 - outside)) + 1, len(edges) - 1)]
    return max(full[0], min(float(low), 0.0)), min(full[1], max(float(high), 0.0))


def _least_error_range(statistics: TensorStatistics, full: Range, bits: int) -> Range:
    """The full range shrunk at either end, as coordinate descent finds it, to the least expected squared error."""
    best = full
    for side in (0, 1, 0, 1):
        shrunk = [best[side] * factor for factor in np.linspace(1, 0.1, CANDIDATES)]
        candidates = [(end, best[1]) if side == 0 else (best[0], end) for end in shrunk]
        errors = [expected_squared_error(statistics, candidate, levels(bits)) for candidate in candidates]
        best = candidates[int(np.argmin(errors))]
    return best


def _least_error_symmetric_range(statistics: TensorStatistics, full: Range, bits: int) -> Range:
    """The full range shrunk at both ends alike to the least expected squared error."""
    candidates = [(full[0] * factor, full[1] * factor) for factor in np.linspace(1, 0.1, CANDIDATES)]
    errors = [expected_squared_error(statistics, candidate, levels(bits) - 1) for candidate in candidates]
    return candidates[int(np.argmin(errors))]


def expected_squared_error(statistics: TensorStatistics, ends: Range, steps: int = LEVELS) -> float:
    """Mean squared error of rounding to `steps` even steps between the ends and clipping what is beyond.

    Inside, an even density within a step is assumed: a twelfth of its square.
    """
    low, high = ends
    edges = statistics.edges
    middles = (edges[:-1] + edges[1:]) / 2
    step = (high - low) / steps
    beyond: NDArray[np.float64] = np.maximum(low - middles, 0) + np.maximum(middles - high, 0)
    squared = np.where(beyond > 0, beyond**2, step**2 / 12)
    return float(squared @ statistics.counts / statistics.counts.sum())
