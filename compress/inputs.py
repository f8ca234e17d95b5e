"""What is known of a layer's inputs: how large each is, and how they go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .layers import Layer
from .statistics import TensorStatistics

MOST_COLUMNS = 6144  # of a layer whose covariance is measured: 150 MB of float32
ROWS_OF_A_RUN = 512  # places of a picture, or tokens, that one run adds to a covariance


@dataclass(frozen=True)
class Inputs:
    """Statistics of activations by their names, and a folder of covariances by the layers' names.

    They are of the layers as they were measured; `kept` says which channels of the inputs some have now.
    """

    statistics: Mapping[str, TensorStatistics]
    covariances: Path
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


def channel_rows(layer: Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The channels that flow into a layer, (rows, channels), at an even choice of places: see `input_rows`."""
    if layer.op_type != "Conv":
        return input_rows(layer, values)
    places = values.reshape(*values.shape[:2], -1)
    chosen = places[..., _even_choice(places.shape[-1])]
    return chosen.transpose(0, 2, 1).reshape(-1, values.shape[1])


def input_rows(layer: Layer, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inputs of a layer's output channels, (rows, columns): an even choice of at most ROWS_OF_A_RUN of them.

    `values` is what flows into the layer: pictures (n, channels, height, width), of each of which that many are chosen,
    or (..., channels).
    """
    if layer.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        return rows[_even_choice(len(rows))]
    return np.concatenate([_windows(layer, picture) for picture in values])


def _windows(layer: Layer, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a convolution's kernel sees at places of a picture (channels, height, width): (places, columns)."""
    kernel = layer.matrix_shape[1:-1]
    attributes = layer.node.attributes
    pads = attributes["pads"].as_ints() if "pads" in attributes else [0] * 4
    strides = attributes["strides"].as_ints() if "strides" in attributes else [1, 1]
    padded = np.pad(picture, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = sliding_window_view(padded, kernel, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    places = windows.shape[1] * windows.shape[2]
    y, x = np.unravel_index(_even_choice(places), windows.shape[1:3])
    return windows[:, y, x].transpose(1, 2, 3, 0).reshape(len(y), -1)


def _even_choice(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, ROWS_OF_A_RUN)).round().astype(np.int64))
