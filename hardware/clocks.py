"""A component's layers as loads for `frequency`: what clocks for each layer gain over one for all, on a device.

A profile tells the clocks that a device can be set to, not their voltages. Those are taken to go in a straight line
with the clock, from `LOWEST_VOLTAGE` of the typical one at the lowest clock to all of it at the highest: an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..runtime.errors import UserError
from .costs import Cost
from .energy import volts
from .frequency import Chip, LayerLoad, OperatingPoint, Schedule, layer_wise, network_wide, voltage_for_each_layer
from .profiles import Profile

LOWEST_VOLTAGE = 0.7


@dataclass(frozen=True)
class ClockComparison:
    """One run of a component: DVFS for the network, DVFS at each layer, and clocks at each layer."""

    limit_watts: float
    network: Schedule
    voltages: Schedule
    clocks: Schedule

    @property
    def speedup(self) -> float:
        """Of clocks for each layer over DVFS for the network: 1.33 is 33% more frames per second."""
        return self.network.seconds / self.clocks.seconds

    @property
    def energy_ratio(self) -> float:
        """Likewise; 0.86 is 14% less."""
        return self.clocks.joules / self.network.joules


def compare_clocks(cost: Cost, profile: Profile, limit_watts: float) -> ClockComparison:
    """Compare on a device whose profile has `clocks`; the limit is on the processor without its DRAM.

    Raises UserError for a profile without clocks, and for a limit under which some layer is at every clock.
    """
    load, chip = layer_load(cost, profile), chip_of(profile)
    return ClockComparison(
        limit_watts,
        network_wide(load, chip, limit_watts),
        voltage_for_each_layer(load, chip, limit_watts),
        layer_wise(load, chip, limit_watts),
    )


def chip_of(profile: Profile) -> Chip:
    """The operating points of a device."""
    if profile.clocks is None:
        raise UserError(f"the profile of {profile.name} has no clocks", hint="add the table [clocks]")
    clocks = np.array(profile.clocks.values_mhz) * 1e6
    top = volts(profile.process_nm.value)
    share = (clocks - clocks[0]) / max(clocks[-1] - clocks[0], 1)
    voltages = top * (LOWEST_VOLTAGE + (1 - LOWEST_VOLTAGE) * share)
    points = tuple(OperatingPoint(float(clock), float(one)) for clock, one in zip(clocks, voltages, strict=True))
    return Chip(points, profile.idle_watts.value, top, profile.bandwidth_gb_per_s.value * 1e9)


def layer_load(cost: Cost, profile: Profile) -> LayerLoad:
    """Cycles, bytes and switched capacitance of every layer that takes time."""
    busy = cost.compute_seconds + cost.overhead_seconds
    chosen = (busy > 0) | (cost.memory_seconds > 0)
    hertz, top = profile.clock_mhz.value * 1e6, volts(profile.process_nm.value)
    cycles = np.maximum(busy[chosen] * hertz, 1.0)
    farads = cost.joules[chosen, :3].sum(axis=1) / cycles / top**2
    return LayerLoad(cycles, cost.dram_bytes[chosen].sum(axis=1), farads)
