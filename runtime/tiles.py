"""Run an engine of the VAE on a large array in overlapping tiles, which fade into each other: less memory at a time.

What a tile makes does not depend on the rest of the picture, as attention and normalizations of the whole would:
colours may differ a little from tile to tile, which is why they overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
OVERLAP = Fraction(1, 4)  # of a tile's side, at least


def in_tiles(whole: Floats, run: Callable[[Floats], Floats], tile: tuple[int, int], unit: int = 1) -> Floats:
    """What `run` makes of `whole`, (1, channels, height, width), from tiles of `tile`, (height, width), of it.

    It makes of a tile one of another size, the same multiple or fraction of each: all tiles together make the result.
    Tiles begin at multiples of `unit`, which is what a fraction goes into.
    Raises ValueError for a tile that is larger than the whole.
    """
    height, width = whole.shape[2:]
    total = weights = np.zeros(0, np.float32)
    for top, left in product(starts(height, tile[0], unit), starts(width, tile[1], unit)):
        made = run(np.ascontiguousarray(whole[:, :, top : top + tile[0], left : left + tile[1]]))
        rows, columns = made.shape[2:]
        scale = Fraction(rows, tile[0])
        if not total.size:
            shape = (int(height * scale), int(width * scale))
            total, weights = np.zeros((*made.shape[:2], *shape), np.float32), np.zeros(shape, np.float32)
        weight = np.outer(_ramp(rows), _ramp(columns))
        place = np.s_[..., int(top * scale) : int(top * scale) + rows, int(left * scale) : int(left * scale) + columns]
        total[place] += weight * made
        weights[place] += weight
    result: Floats = total / weights
    return result


def starts(side: int, tile: int, unit: int = 1) -> list[int]:
    """Where tiles begin along a side, evenly, so that neighbours share OVERLAP of a tile or more, less `unit`.

    Raises ValueError for a tile that is longer than the side.
    """
    if not 0 < tile <= side:
        raise ValueError(f"tiles of {tile} do not fit into a side of {side}")
    if tile == side:
        return [0]
    step = tile - int(tile * OVERLAP)
    count = -(-(side - tile) // step) + 1
    return sorted({(side - tile) * index // (count - 1) // unit * unit for index in range(count)})


def _ramp(length: int) -> Floats:
    """Weights along a tile's side: the farther from an edge, the more, up to OVERLAP."""
    edge = max(int(length * OVERLAP), 1)
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    ramp: Floats = np.minimum(distance / edge, 1).astype(np.float32)
    return ramp
