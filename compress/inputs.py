"""What is known of a layer's inputs: how large each is, and how they go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .layers import Layer
from .statistics import TensorStatistics, even_choice

MOST_COLUMNS = 6144  # of a layer whose covariance is measured: 150 MB of float32
ROWS_AT_ONCE = 1024  # inputs whose products are added up together: a few at a time would take longer


@dataclass(frozen=True)
class Inputs:
    """Statistics of activations by their names, and a folder of covariances by the layers' names.

    `by_timestep` has statistics of its own for each part of the schedule, if there are parts, which the timesteps
    `boundaries` divide. All are of the layers as they were measured; `kept` says which channels of the inputs some have
    now.
    """

    statistics: Mapping[str, TensorStatistics]
    covariances: Path
    by_timestep: tuple[Mapping[str, TensorStatistics], ...] = ()
    boundaries: tuple[float, ...] = ()
    kept: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def narrowed(self, kept: Mapping[str, NDArray[np.int64]]) -> Inputs:
        """The same of layers, by their names, that take only some of the channels that were measured."""
        return replace(self, kept=kept)

    def mean_squares(self, layer: Layer) -> NDArray[np.float32]:
        """Of each column's input, (columns,): of a convolution the same at every place of the kernel."""
        channels = np.square(self.statistics[layer.input_name].rms)
        channels = channels[self.kept.get(layer.name, slice(None))]
        return np.tile(channels, layer.columns // len(channels))

    def has_covariance(self, layer: Layer) -> bool:
        """Whether the covariance of a layer's inputs was measured."""
        return covariance_file(self.covariances, layer.name).exists()

    def covariance(self, layer: Layer) -> NDArray[np.float32] | None:
        """The mean of x x^T over a layer's inputs x, (columns, columns); None for a layer too wide for it."""
        if not self.has_covariance(layer):
            return None
        found: NDArray[np.float32] = np.load(covariance_file(self.covariances, layer.name), allow_pickle=False)
        if layer.name not in self.kept:
            return found
        places = layer.columns // len(self.kept[layer.name])
        measured = np.arange(len(found)).reshape(places, -1)[:, self.kept[layer.name]].reshape(-1)
        return found[np.ix_(measured, measured)]

    def channel_covariance(self, layer: Layer) -> NDArray[np.float32] | None:
        """The mean of x x^T over the channels x that were measured to flow into a layer, (channels, channels).

        None for a layer with too many.
        """
        file = channel_covariance_file(self.covariances, layer.name)
        return np.load(file, allow_pickle=False) if file.exists() else None


def covariance_file(folder: Path, layer: str) -> Path:
    """Where the covariance of a layer's inputs is."""
    return folder / f"{layer}.npy"


def channel_covariance_file(folder: Path, layer: str) -> Path:
    """Where the covariance of the channels is that flow into a layer."""
    return folder / f"{layer}.channels.npy"


@dataclass
class Covariance:
    """The mean of x x^T over a layer's inputs x, gathered from a choice of them.

    x has the columns of the layer's matrix, or `of_channels` the channels of its input.
    """

    layer: Layer
    of_channels: bool = False
    _sum: NDArray[np.float32] | None = field(default=None, init=False)
    _rows: list[NDArray[np.float32]] = field(default_factory=list, init=False)  # that are not in the sum yet
    _count: int = field(default=0, init=False)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        side = self.layer.matrix_shape[-1] if self.of_channels else self.layer.columns
        return 4 * side * (side + ROWS_AT_ONCE)

    def add(self, values: NDArray[np.float32], most: int) -> None:
        """Take in `most` (at least one) of what flows into it: pictures (n, channels, h, w), or (..., channels)."""
        rows = (channel_rows if self.of_channels else input_rows)(self.layer, values, max(1, most))
        self._rows.append(rows)
        self._count += len(rows)
        if sum(map(len, self._rows)) >= ROWS_AT_ONCE:
            self._multiply()

    def _multiply(self) -> None:
        rows = np.concatenate(self._rows)
        squares = rows.T @ rows
        self._sum = squares if self._sum is None else np.add(self._sum, squares, out=self._sum)
        self._rows.clear()

    def mean(self) -> NDArray[np.float32]:
        """The covariance about zero, (columns, columns) or (channels, channels)."""
        if self._rows:
            self._multiply()
        if self._sum is None:
            raise ValueError(f"no inputs of '{self.layer.name}' were seen")
        return self._sum / np.float32(self._count)


def channel_rows(layer: Layer, values: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """The channels that flow into a layer, (rows, channels), at an even choice of places: see `input_rows`."""
    if layer.op_type != "Conv":
        return input_rows(layer, values, most)
    places = values.reshape(*values.shape[:2], -1)
    chosen = places[..., even_choice(places.shape[-1], max(1, most // len(values)))]
    return chosen.transpose(0, 2, 1).reshape(-1, values.shape[1])


def input_rows(layer: Layer, values: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Inputs of a layer's output channels, (rows, columns): an even choice of at most `most` of them.

    `values` is what flows into the layer: pictures (n, channels, height, width), or (..., channels).
    """
    if layer.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[even_choice(len(rows), most)]
    return np.concatenate([_windows(layer, picture, max(1, most // len(values))) for picture in values])


def _windows(layer: Layer, picture: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """What a convolution's kernel sees at places of a picture (channels, height, width): (places, columns)."""
    kernel = layer.matrix_shape[1:-1]
    attributes = layer.node.attributes
    pads = attributes["pads"].as_ints() if "pads" in attributes else [0] * 4
    strides = attributes["strides"].as_ints() if "strides" in attributes else [1, 1]
    padded = np.pad(picture, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = sliding_window_view(padded, kernel, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    places = windows.shape[1] * windows.shape[2]
    y, x = np.unravel_index(even_choice(places, most), windows.shape[1:3])
    return windows[:, y, x].transpose(1, 2, 3, 0).reshape(len(y), -1)
