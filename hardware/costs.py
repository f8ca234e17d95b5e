"""What a run of one component costs on a device: seconds, joules and bytes, of every layer.

A layer takes as long as its multiplications or its bytes, whichever is longer, and its start. A device that was
measured knows how long layers like it took; of the others the units' shapes say how much of the peak is wasted, and
`sustained_fraction` what is lost besides. Above its power limit a device clocks down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError
from . import systolic
from .energy import ADD_PJ, Energies, energies
from .measured import measured_seconds
from .profiles import DataType, Profile
from .traffic import dram_bytes
from .workload import Layer, column, with_floats

Numbers = NDArray[np.float64]

# Of a layer that fills the units, what a whole network sustains of their peak, unless the profile says otherwise: an
# assumption, made before it was compared with anything (docs/prediction.md).
SUSTAINED_FRACTION = 0.5
# Arithmetic for each element of layers without a product, and units for it where a profile tells no float32 peak.
OPERATIONS = {"normalization": 8, "softmax": 10, "elementwise": 4, "move": 0, "gather": 0}
VECTOR_SHARE = 1 / 32
REGISTER_ROWS, REGISTER_VECTORS = 6, 2  # the block of sums that a SIMD product keeps in registers
FALLBACKS: dict[str, tuple[DataType, ...]] = {
    "int8": ("int8", "float16", "float32"),
    "float16": ("float16", "float32"),
    "float32": ("float32",),
}
LEVELS = ("compute", "instructions", "on_chip", "dram", "static")


@dataclass(frozen=True)
class Cost:
    """Of one run: arrays have a number for each layer; `joules` has a column for each of LEVELS."""

    layers: tuple[Layer, ...]
    compute_seconds: Numbers
    memory_seconds: Numbers
    overhead_seconds: Numbers
    layer_seconds: Numbers
    dram_bytes: Numbers  # (layers, 3): input, weights, output
    joules: Numbers  # (layers, levels)
    is_throttled: bool

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return float(self.layer_seconds.sum())

    @property
    def energy_joules(self) -> float:
        """Of the whole run, modelled."""
        return float(self.joules.sum())

    @property
    def bottleneck(self) -> str:
        """What most of the time goes to: compute, memory, overhead, or the limit of power."""
        if self.is_throttled:
            return "power"
        bound = self.memory_seconds > self.compute_seconds
        longest = np.maximum(self.memory_seconds, self.compute_seconds)
        shares = {
            "compute": float(longest[~bound].sum()),
            "memory": float(longest[bound].sum()),
            "overhead": float(self.overhead_seconds.sum()),
        }
        return max(shares, key=lambda name: shares[name])


def cost(layers: Sequence[Layer], profile: Profile, float_bits: int | None = None, target: str = "") -> Cost:
    """What a run costs; floats are computed in `float_bits`, by default the device's own.

    `target` chooses among the engines that a measured device was measured with. Raises UserError for a data type that
    the device can't compute in, or a target that it was not measured with.
    """
    layers = with_floats(tuple(layers), float_bits or profile.float_bits)
    types = [data_type(layer, profile) for layer in layers]
    moved = dram_bytes(layers, profile)
    memory = moved.sum(axis=1) / (profile.bandwidth_gb_per_s.value * 1e9)
    per_layer = energies_of(profile)
    if profile.measured:
        compute, memory = measured_seconds(layers, profile, target), np.zeros(len(layers))
    else:
        sustained = profile.sustained_fraction.value if profile.sustained_fraction else SUSTAINED_FRACTION
        compute = compute_seconds(layers, types, profile) / sustained
    overhead = overhead_seconds(layers, profile)
    seconds = np.maximum(compute, memory) + overhead
    joules = np.zeros((len(layers), len(LEVELS)))
    joules[:, :3] = on_chip_joules(layers, types, profile, per_layer)
    joules[:, 3] = moved.sum(axis=1) * per_layer.dram_pj_per_byte * 1e-12
    is_throttled = False
    if not profile.measured:  # a measured device was clocked as it was
        seconds, is_throttled = throttled(seconds, joules.sum(axis=1), profile)
    joules[:, 4] = seconds * profile.idle_watts.value
    return Cost(layers, compute, memory, overhead, seconds, moved, joules, is_throttled)


def overhead_seconds(layers: Sequence[Layer], profile: Profile) -> Numbers:
    """What starting each layer takes; functions that are computed where their input is made are not started."""
    if profile.layer_overhead_us is None or profile.measured:
        return np.zeros(len(layers))
    started = np.array([layer.kind not in ("elementwise", "softmax") for layer in layers])
    return started * profile.layer_overhead_us.value * 1e-6


def energies_of(profile: Profile) -> Energies:
    """The energies of a device's process and memories."""
    return energies(profile.process_nm.value, profile.on_chip_mb.value * 1e6, profile.memory)


def data_type(layer: Layer, profile: Profile) -> DataType:
    """What a device computes a layer in: the type asked for, or the next larger that it has."""
    asked = layer.data_type
    if not layer.is_product:
        return "float16" if layer.output_bits <= 16 else "float32"
    for candidate in FALLBACKS[asked]:
        if candidate in profile.peak_tops:
            return candidate
    raise UserError(
        f"{profile.name} can't compute '{layer.name}' in {asked}; it computes in {', '.join(profile.peak_tops)}",
        hint="predict with another recipe for this device",
    )


def compute_seconds(layers: Sequence[Layer], types: Sequence[DataType], profile: Profile) -> Numbers:
    """Seconds at the peak, with what the shapes of the units waste."""
    peak = np.array([_peak(profile, layer, one) for layer, one in zip(layers, types, strict=True)])
    macs = column(layers, lambda layer: layer.macs)
    rows, columns, depth, repeats = shapes(layers)
    products = np.array([layer.is_product for layer in layers])
    if profile.kind == "systolic" and profile.array is not None:
        array = profile.array
        fastest = max(figure.value for figure in profile.peak_tops.values()) * 1e12
        found = systolic.cycles(rows, columns, depth, array.rows, array.columns, array.stationary) * repeats
        ideal = 2.0 * array.rows * array.columns * array.count / fastest  # seconds a cycle, at the fastest type
        seconds = found / array.count * ideal * fastest / peak
    elif profile.tile is not None:
        tile = profile.tile
        padded = _padded(rows, tile.rows) * _padded(columns, tile.columns) * _padded(depth, tile.depth)
        seconds = 2 * padded * repeats / peak
    elif profile.lanes:
        lanes = np.array([profile.lanes[one].value if one in profile.lanes else 1 for one in types])
        seconds = 2 * rows * _padded(columns, lanes) * depth * repeats / peak
    else:
        seconds = 2 * macs / peak
    sparse = column(layers, lambda layer: layer.nonzero_fraction if profile.skips_2_4 else 1.0)
    operations = column(layers, lambda layer: OPERATIONS.get(layer.kind, 0) * layer.output_elements)
    return np.where(products, seconds * sparse, operations / vector_operations_per_second(profile))


def vector_operations_per_second(profile: Profile) -> float:
    """What layers without products are computed with: the float32 units, or a share of the others."""
    if "float32" in profile.peak_tops:
        return profile.peak_tops["float32"].value * 1e12
    return min(figure.value for figure in profile.peak_tops.values()) * 1e12 * VECTOR_SHARE


def on_chip_joules(layers: Sequence[Layer], types: Sequence[DataType], profile: Profile, costs: Energies) -> Numbers:
    """Joules of arithmetic, instructions and the memory on the chip, (layers, 3)."""
    rows, columns, depth, repeats = shapes(layers)
    macs = column(layers, lambda layer: layer.macs)
    operations = column(layers, lambda layer: OPERATIONS.get(layer.kind, 0) * layer.output_elements)
    operand_bytes = column(layers, lambda layer: max(layer.input_bits, layer.weight_bits) / 8 * layer.is_product)
    mac_pj = np.array([costs.mac_pj[one] for one in types])
    add_pj = costs.mac_pj["float32"] * ADD_PJ["float32"] / (ADD_PJ["float32"] + 3.7)
    if profile.kind == "systolic" and profile.array is not None:
        array = profile.array
        crossed = systolic.array_accesses(rows, columns, depth, array.rows, array.columns, array.stationary)
        words, instructions = (crossed.reads + crossed.writes) * repeats, crossed.instructions
    elif profile.kind == "per-operation":
        crossed = systolic.core_accesses(rows, columns, depth)
        words, instructions = (crossed.reads + crossed.writes) * repeats, crossed.instructions * repeats
    elif profile.tile is not None:
        tile = profile.tile
        words = macs * (1 / tile.rows + 1 / tile.columns)
        instructions = macs / (tile.rows * tile.columns * tile.depth)
    else:
        lanes = np.array([profile.lanes[one].value if one in profile.lanes else 1 for one in types])
        words, instructions = macs * (1 / REGISTER_ROWS + 1 / (REGISTER_VECTORS * lanes)), macs / lanes
    plain_bytes = column(layers, lambda layer: 0 if layer.is_product else layer.input_bytes + layer.output_bytes)
    on_chip = (words * operand_bytes + plain_bytes) * costs.on_chip_pj_per_byte
    found = np.stack([macs * mac_pj + operations * add_pj, instructions * costs.instruction_pj, on_chip], axis=1)
    return found * 1e-12


def throttled(seconds: Numbers, joules: Numbers, profile: Profile) -> tuple[Numbers, bool]:
    """Times under the limit of power: where a run's dynamic energy would come too fast, it comes slower."""
    room_watts = profile.power_watts.value - profile.idle_watts.value
    needed = float(joules.sum()) / room_watts
    total = float(seconds.sum())
    if total >= needed:
        return seconds, False
    return seconds * (needed / total), True


def shapes(layers: Sequence[Layer]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Rows, columns and depth of every layer's product, and how many times it is computed (groups, heads)."""
    return (
        column(layers, lambda layer: layer.rows),
        column(layers, lambda layer: layer.columns),
        column(layers, lambda layer: layer.depth),
        column(layers, lambda layer: layer.batch * layer.groups * layer.is_product),
    )


def _peak(profile: Profile, layer: Layer, one: DataType) -> float:
    """Operations a second."""
    if not layer.is_product:
        return 1.0
    return profile.peak_tops[one].value * 1e12


def _padded(size: Numbers, unit: float | Numbers) -> Numbers:
    found: Numbers = np.ceil(size / unit) * unit
    return found
