"""Clocks under a limit of power: one for the whole network, or one for each layer.

A layer's power is P(f, V) = P_static(V) + a V^2 f, `a` its switched capacitance. Changing the voltage (DVFS) takes
longer than most layers, so it is done once for a network; the clock alone can change at each layer (Chung et al., ETRI
Journal 2022). Time is that of the cycles at the clock, or of the bytes at the memory's own, whichever is longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """A clock and the lowest voltage that it runs at."""

    hertz: float
    volts: float


@dataclass(frozen=True)
class LayerLoad:
    """Of each layer, (layers,): its cycles, bytes, and switched capacitance in farads (joules per cycle and volt^2)."""

    cycles: Numbers
    dram_bytes: Numbers
    farads: Numbers


@dataclass(frozen=True)
class Chip:
    """Points in ascending order of clock; static watts are `static_watts` at `reference_volts`, and go with V^2."""

    points: tuple[OperatingPoint, ...]
    static_watts: float
    reference_volts: float
    bytes_per_second: float
    clock_switch_seconds: float = 1e-6
    voltage_switch_seconds: float = 50e-6

    def static_power(self, volts: float) -> float:
        """In watts."""
        return self.static_watts * (volts / self.reference_volts) ** 2


@dataclass(frozen=True)
class Schedule:
    """A clock for each layer, (layers,), and what a run costs; `switches` are changes from one layer to the next."""

    hertz: Numbers
    volts: float
    seconds: float
    joules: float
    switches: int

    @property
    def watts(self) -> float:
        """On average."""
        return self.joules / self.seconds


def network_wide(load: LayerLoad, chip: Chip, limit_watts: float) -> Schedule:
    """DVFS: the fastest single point at which no layer is above the limit. Raises UserError if there is none."""
    for point in reversed(chip.points):
        if float(layer_watts(load, chip, point.hertz, point.volts).max()) <= limit_watts:
            return run(load, chip, np.full(len(load.cycles), point.hertz), point.volts)
    raise _too_low(limit_watts)


def layer_wise(load: LayerLoad, chip: Chip, limit_watts: float, volts: float | None = None) -> Schedule:
    """For each layer the highest clock under the limit, at one voltage: the one of the least time unless it is given.

    Where switching takes longer than it gains, all layers have one clock. A layer that waits for memory gains nothing
    above the clock at which it does, and takes the lowest that is as fast.
    Raises UserError if a layer is above the limit at every clock.
    """
    voltages = sorted({point.volts for point in chip.points}) if volts is None else [volts]
    found = [each for each in (_layer_wise_at(load, chip, limit_watts, one) for one in voltages) if each is not None]
    if not found:
        raise _too_low(limit_watts)
    return min(found, key=lambda schedule: (schedule.seconds, schedule.joules))


def _layer_wise_at(load: LayerLoad, chip: Chip, limit_watts: float, volts: float) -> Schedule | None:
    clocks = np.array([point.hertz for point in chip.points if point.volts <= volts])
    if not len(clocks):
        return None
    watts = np.stack([layer_watts(load, chip, clock, volts) for clock in clocks])  # (clocks, layers)
    seconds = np.stack([layer_seconds(load, chip, clock) for clock in clocks])
    allowed = watts <= limit_watts
    if not allowed.any(axis=0).all():
        return None
    best = np.where(allowed, seconds, np.inf).min(axis=0)
    first = (allowed & (seconds <= best * (1 + 1e-12))).argmax(axis=0)  # clocks ascend: the lowest of the fastest
    found = [run(load, chip, clocks[first], volts)]
    for_all = allowed.all(axis=1)
    if for_all.any():  # where layers differ little, switching costs more than it gains
        found.append(run(load, chip, np.full(len(first), clocks[for_all].max()), volts))
    return min(found, key=lambda schedule: (schedule.seconds, schedule.joules))


def run(load: LayerLoad, chip: Chip, hertz: Numbers, volts: float) -> Schedule:
    """What a run with these clocks, (layers,), costs; the voltage is set once, before it."""
    seconds = layer_seconds(load, chip, hertz)
    switches = int((np.diff(hertz) != 0).sum())
    total = float(seconds.sum()) + switches * chip.clock_switch_seconds
    joules = float((load.farads * load.cycles).sum()) * volts**2 + chip.static_power(volts) * total
    return Schedule(hertz, volts, total, joules, switches)


def voltage_for_each_layer(load: LayerLoad, chip: Chip, limit_watts: float) -> Schedule:
    """DVFS at each layer: what changing the voltage there costs. Raises UserError if a layer is always too hot."""
    chosen = np.full(len(load.cycles), -1)
    for index, point in enumerate(chip.points):
        chosen[layer_watts(load, chip, point.hertz, point.volts) <= limit_watts] = index
    if (chosen < 0).any():
        raise _too_low(limit_watts)
    hertz = np.array([chip.points[index].hertz for index in chosen])
    volts = np.array([chip.points[index].volts for index in chosen])
    seconds = layer_seconds(load, chip, hertz)
    static = chip.static_watts * (volts / chip.reference_volts) ** 2
    switches = int((np.diff(chosen) != 0).sum())
    stalled = switches * chip.voltage_switch_seconds
    joules = float((load.farads * load.cycles * volts**2 + static * seconds).sum()) + float(static.max()) * stalled
    return Schedule(hertz, float(volts.max()), float(seconds.sum()) + stalled, joules, switches)


def layer_seconds(load: LayerLoad, chip: Chip, hertz: Numbers | float) -> Numbers:
    """Of each layer: its cycles at the clock, or its bytes at the memory's, whichever takes longer."""
    found: Numbers = np.maximum(load.cycles / hertz, load.dram_bytes / chip.bytes_per_second)
    return found


def layer_watts(load: LayerLoad, chip: Chip, hertz: float, volts: float) -> Numbers:
    """Of each layer while it runs; one that waits for memory switches less often than the clock."""
    busy = load.cycles / layer_seconds(load, chip, hertz)  # cycles a second
    found: Numbers = chip.static_power(volts) + load.farads * volts**2 * busy
    return found


def _too_low(limit_watts: float) -> UserError:
    return UserError(
        f"no clock keeps every layer under {limit_watts:g} W",
        hint="raise the limit, or add lower clocks to the profile",
    )
