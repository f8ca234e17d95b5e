"""What is known of a layer's inputs: how large each is, and how they go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .layers import Layer
from .statistics import TensorStatistics, even_choice

MOST_COLUMNS = 6144  # of a layer whose covariance is measured: 150 MB of float32


@dataclass(frozen=True)
class Inputs:
    """Statistics of activations by their names, and a folder of covariances by the layers' names.

    `by_timestep` has statistics of its own for each part of the schedule, if there are parts, which the timesteps
    `boundaries` divide.
    """

    statistics: Mapping[str, TensorStatistics]
    covariances: Path
    by_timestep: tuple[Mapping[str, TensorStatistics], ...] = ()
    boundaries: tuple[float, ...] = ()

    def mean_squares(self, layer: Layer) -> NDArray[np.float32]:
        """Of each column's input, (columns,): of a convolution the same at every place of the kernel."""
        channels = np.square(self.statistics[layer.input_name].rms)
        return np.tile(channels, layer.columns // len(channels))

    def has_covariance(self, layer: Layer) -> bool:
        """Whether the covariance of a layer's inputs was measured."""
        return covariance_file(self.covariances, layer.name).exists()

    def covariance(self, layer: Layer) -> NDArray[np.float32] | None:
        """The mean of x x^T over a layer's inputs x, (columns, columns); None for a layer too wide for it."""
        if not self.has_covariance(layer):
            return None
        found: NDArray[np.float32] = np.load(covariance_file(self.covariances, layer.name), allow_pickle=False)
        return found


def covariance_file(folder: Path, layer: str) -> Path:
    """Where the covariance of a layer's inputs is."""
    return folder / f"{layer}.npy"


class Covariance:
    """The mean of x x^T over a layer's inputs x, (columns, columns), gathered from a choice of them."""

    def __init__(self, layer: Layer, rows: int) -> None:
        """`rows` is how many inputs are chosen of each array that is added, at most."""
        self.layer, self.rows, self._count = layer, max(1, rows), 0
        self._sum = np.zeros((layer.columns, layer.columns), np.float32)

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in what flows into the layer: pictures (n, channels, height, width), or (..., channels)."""
        rows = input_rows(self.layer, values, self.rows)
        self._sum += rows.T @ rows
        self._count += len(rows)

    def mean(self) -> NDArray[np.float32]:
        """The covariance about zero."""
        return self._sum / np.float32(self._count)


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
