"""What activations look like over many runs, gathered one array at a time in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 2048
SMALLEST_RANGE = 2.0**-24
MOST_VALUES = 2**20  # of an array that the histogram and the second moments are of; the extremes are of all


@dataclass
class TensorStatistics:
    """Extremes, a histogram and, along one axis, second moments and peaks of a tensor's values.

    The histogram has BINS equal bins over -range..range; the range is a power of two, which doubles, as neighbouring
    bins are joined, when a value lies beyond it. `square_sums` and `peaks`, the largest magnitudes, have an entry for
    each place along the channel axis.
    """

    low: float
    high: float
    range: float
    counts: NDArray[np.int64]
    square_sums: NDArray[np.float64]
    peaks: NDArray[np.float32]
    rows: int  # how many values each of the square sums is of

    @classmethod
    def empty(cls, channels: int) -> TensorStatistics:
        """Of no values yet."""
        sums, peaks = np.zeros(channels), np.zeros(channels, np.float32)
        return cls(np.inf, -np.inf, SMALLEST_RANGE, np.zeros(BINS, np.int64), sums, peaks, 0)

    def add(self, values: NDArray[np.float32], channel_axis: int) -> None:
        """Take in an array; raises ValueError if it holds NaN or infinities."""
        others = tuple(axis for axis in range(values.ndim) if axis != channel_axis % values.ndim)
        lows, highs = values.min(others), values.max(others)
        low, high = float(lows.min()), float(highs.max())
        if not np.isfinite(low + high):
            raise ValueError("an activation is NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        while max(-low, high) > self.range:
            self._double()
        self.peaks = np.maximum(self.peaks, np.maximum(-lows, highs))
        rows = _choice(values, channel_axis)
        self.counts += np.histogram(rows, BINS, (-self.range, self.range))[0]
        self.square_sums += np.square(rows, dtype=np.float64).sum((0, 2))
        self.rows += rows.size // len(self.square_sums)

    def _double(self) -> None:
        quarter = BINS // 4
        joined = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.concatenate([np.zeros(quarter, np.int64), joined, np.zeros(quarter, np.int64)])
        self.range *= 2

    @property
    def rms(self) -> NDArray[np.float32]:
        """Root mean square of each channel, (channels,)."""
        return np.sqrt(self.square_sums / max(self.rows, 1)).astype(np.float32)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The edges of the bins, (BINS + 1,)."""
        return np.linspace(-self.range, self.range, BINS + 1)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything, for a file; `of_arrays` is the way back."""
        numbers = np.array([self.low, self.high, self.range, self.rows], np.float64)
        moments = {"square_sums": self.square_sums, "peaks": self.peaks.astype(np.float64)}
        return {"numbers": numbers, "counts": self.counts.astype(np.float64), **moments}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> TensorStatistics:
        """From what `arrays` gave."""
        low, high, reach, rows = arrays["numbers"]
        counts, peaks = arrays["counts"].astype(np.int64), arrays["peaks"].astype(np.float32)
        return cls(float(low), float(high), float(reach), counts, arrays["square_sums"], peaks, int(rows))


def _choice(values: NDArray[np.float32], channel_axis: int) -> NDArray[np.float32]:
    """About MOST_VALUES of an array at most, (before, channels, after): an even choice of places, with all channels."""
    axis = channel_axis % values.ndim
    before, channels = int(np.prod(values.shape[:axis])), values.shape[axis]
    rows = values.reshape(before, channels, -1)
    if axis == values.ndim - 1:
        return rows[even_choice(before, MOST_VALUES // channels)]
    return rows[:, :, even_choice(rows.shape[2], MOST_VALUES // (before * channels))]


def even_choice(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` (at least one) of the numbers 0 .. count - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, max(most, 1))).round().astype(np.int64))
