"""How many bytes cross to and from DRAM: a bound that a good schedule comes near to, not a schedule.

Every weight is read once. An activation that fits into half of the on-chip memory never leaves it. A layer whose
operands do not fit moves at least 2 MACs / sqrt(R S) elements, S the on-chip memory in elements and R how often the
windows of a convolution overlap (Chen et al., HPCA 2020). Functions of one number are computed where it is made;
attention's scores, too, if the device does not spill them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .profiles import Profile
from .workload import Layer, attention_triples

INPUT, WEIGHT, OUTPUT = range(3)  # the columns of what these functions give


def dram_bytes(layers: Sequence[Layer], profile: Profile) -> NDArray[np.float64]:
    """Bytes of input, weights and output of every layer on a device, (layers, 3): where a scheduler would come in."""
    return traffic_bound(layers, profile.on_chip_mb.value * 1e6)


def traffic_bound(layers: Sequence[Layer], on_chip_bytes: float, fuses: bool = True) -> NDArray[np.float64]:
    """Bytes of input, weights and output of every layer, (layers, 3), in a run that starts with nothing on the chip.

    `fuses`: elementwise layers and attention's softmax are computed where their input is.
    """
    found = np.array([_own_bytes(layer) for layer in layers], np.float64).reshape(-1, 3)
    if fuses:
        found = _fused(layers, found)
    kept = _kept(found[:, OUTPUT], on_chip_bytes / 2)
    kept[-1:] = False  # the result is wanted outside
    inputs = np.concatenate([[False], kept[:-1]])
    moved = found.copy()
    moved[kept, OUTPUT] = 0
    moved[inputs, INPUT] = 0
    return _bounded(layers, found, moved, on_chip_bytes, fuses)


def _own_bytes(layer: Layer) -> tuple[int, int, int]:
    return layer.input_bytes, layer.weight_bytes, layer.output_bytes


def _fused(layers: Sequence[Layer], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without what is never stored: inputs of functions that the layer before made, and attention's scores."""
    found = found.copy()
    for index, layer in enumerate(layers):
        if layer.kind == "elementwise":
            found[index, OUTPUT] = 0  # takes the place of its input
            found[index, INPUT] *= (layer.operands - 1) / layer.operands
    for before, softmax, after in attention_triples(layers):
        found[before, OUTPUT] = found[softmax] = found[after, INPUT] = 0
    return found


def _kept(output_bytes: NDArray[np.float64], room_bytes: float) -> NDArray[np.bool_]:
    """Which outputs stay on the chip until the next layer."""
    fits: NDArray[np.bool_] = output_bytes <= room_bytes
    return fits


def _bounded(
    layers: Sequence[Layer],
    found: NDArray[np.float64],
    moved: NDArray[np.float64],
    on_chip_bytes: float,
    fuses: bool,
) -> NDArray[np.float64]:
    """Layers that do not fit move more than each operand once: the difference is counted as weights' and inputs'."""
    for index, layer in enumerate(layers):
        streams = fuses and layer.kind == "attention"  # head by head, whose keys and values fit
        if not layer.is_product or streams or found[index].sum() <= on_chip_bytes:
            continue
        bits = max(layer.input_bits, layer.weight_bits)
        room = on_chip_bytes * 8 / bits
        overlap = layer.kernel_height * layer.kernel_width / layer.stride**2
        least = 2 * layer.macs / np.sqrt(max(overlap, 1) * room) * bits / 8
        more = max(0.0, least - moved[index].sum())
        smaller = INPUT if found[index, INPUT] < found[index, WEIGHT] else WEIGHT
        moved[index, smaller] += more  # the smaller operand is the one that passes several times
    return moved
