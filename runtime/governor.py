"""Keeps a live zoom on time, and within a budget of power or heat, by choosing among operating points.

A pure controller: `decide(points, limits, state, observation)` gives the next state. The law, once per observation:

1. *Pressures*, 1 where a limit is just met:
   - painting: the seconds that a keyframe takes over UTILISATION times those until the next one is due;
   - frames: frames asked for over frames shown, where those fall short by more than FRAMES_MISSED;
   - power: smoothed watts over the budget;
   - temperature: 1 + (T - limit) / SPAN_CELSIUS, where T is what the temperature will be in HORIZON_SECONDS if it
     goes on rising as it does: heat comes late, so it is met early.
2. *Down* when the highest pressure is above 1: to the first point whose work per second is lower by that factor. All
   that a keyframe takes grows with that work, and so do the watts beyond idle. Power and temperature answer slowly,
   so after a change they wait SETTLE_SECONDS before the next.
3. *Up*, when for `patience_seconds` on end all pressures would have stayed below HEADROOM at the next point: to the
   best point where that holds now, but at most to MAX_RISE times the work per second. Painting time is proportional to
   work; of power and of heat above AMBIENT_CELSIUS only DYNAMIC_SHARE is taken to be, the rest is there at idle.
4. *Hysteresis*: besides the gap between 1 and HEADROOM, a rise that had to be undone within PROVEN_SECONDS doubles the
   patience, up to MAX_PATIENCE_SECONDS; one that held halves it. So a limit that lies between two points makes ever
   fewer changes, not a steady back and forth.

What can't be measured puts no pressure on. Sources: the on-demand governor of Linux's cpufreq for "down by proportion,
up by steps" turned around; exponential back-off as in Ethernet (Metcalfe and Boggs 1976).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .errors import UserError
from .operating_points import OperatingPoint

UTILISATION = 0.9
FRAMES_MISSED = 0.03
SPAN_CELSIUS = 20.0
HORIZON_SECONDS = 10.0
HEADROOM = 0.9
DYNAMIC_SHARE = 0.5
AMBIENT_CELSIUS = 25.0
SETTLE_SECONDS = 5.0
FIRST_PATIENCE_SECONDS = 10.0
MAX_PATIENCE_SECONDS = 640.0
PROVEN_SECONDS = 300.0
SMOOTHING_SECONDS = 3.0  # of power and temperature; of the temperature's slope twice that
MAX_RISE = 2.0
MAX_FACTOR = 4.0  # by which work is lowered at once


@dataclass(frozen=True)
class Limits:
    """What a live zoom may use; None: as much as it takes."""

    power_watts: float | None = None
    temperature_celsius: float | None = None

    def __post_init__(self) -> None:
        if self.power_watts is not None and not 0 < self.power_watts < math.inf:
            raise UserError(f"--power-budget must be above 0 watts, got {self.power_watts:g}", hint="try 15")
        if self.temperature_celsius is not None and not AMBIENT_CELSIUS < self.temperature_celsius <= 150:
            raise UserError(
                f"--temperature-limit must be above {AMBIENT_CELSIUS:g} and at most 150 degrees Celsius, "
                f"got {self.temperature_celsius:g}",
                hint="80 is well below where most processors slow down",
            )


@dataclass(frozen=True)
class Observation:
    """What was measured in the last `seconds`; None: it can't be, or not yet.

    `painting_seconds` is what a keyframe takes at the point in force.
    """

    seconds: float
    painting_seconds: float | None = None
    frames_shown_fraction: float | None = None  # of those that were due
    power_watts: float | None = None
    temperature_celsius: float | None = None


@dataclass(frozen=True)
class State:
    """Where the governor is: `level` is the index of the point in force, and `reason` why it was chosen."""

    level: int = 0
    reason: str = "start"  # painting, frames, power, temperature: what pressed; spare: there was room
    held_seconds: float = math.inf  # since the last change
    calm_seconds: float = 0.0
    patience_seconds: float = FIRST_PATIENCE_SECONDS
    on_trial: bool = False  # went up, and that has not held for PROVEN_SECONDS yet
    power_watts: float | None = None  # smoothed, as are the next two
    temperature_celsius: float | None = None
    celsius_per_second: float = 0.0


def decide(points: Sequence[OperatingPoint], limits: Limits, state: State, seen: Observation) -> State:
    """The state after an observation; its `level` is the point to run at from now on."""
    state = _proven(_smoothed(state, seen))
    here = points[state.level]
    now = pressures(here, here, limits, state, seen)
    settled = state.held_seconds >= SETTLE_SECONDS
    urgent = {name: value for name, value in now.items() if settled or name == "painting"}
    reason = max(urgent, key=lambda name: urgent[name], default="")
    if reason and urgent[reason] > 1:
        return _down(points, state, reason, urgent[reason])
    if state.level == 0 or max(now.values(), default=0.0) > 1:
        return replace(state, calm_seconds=0.0)

    def has_room(level: int) -> bool:
        return max(pressures(points[level], here, limits, state, seen).values(), default=0.0) < HEADROOM

    calm_seconds = state.calm_seconds + seen.seconds if has_room(state.level - 1) else 0.0
    if calm_seconds < state.patience_seconds:
        return replace(state, calm_seconds=calm_seconds)
    within = [i for i in range(state.level) if points[i].work_per_second <= MAX_RISE * here.work_per_second]
    level = next((i for i in within if has_room(i)), state.level - 1)
    return replace(state, level=level, reason="spare", held_seconds=0.0, calm_seconds=0.0, on_trial=True)


def pressures(
    point: OperatingPoint, here: OperatingPoint, limits: Limits, state: State, seen: Observation
) -> Mapping[str, float]:
    """Each limit's at `point`, as far as known, from what was measured at the point `here`: 1 is just met."""
    ratio = point.work_per_second / here.work_per_second
    heat_ratio = 1 + DYNAMIC_SHARE * (ratio - 1)
    found = {}
    if seen.painting_seconds is not None:
        found["painting"] = ratio * seen.painting_seconds / (UTILISATION * here.interval_seconds)
    if seen.frames_shown_fraction is not None and seen.frames_shown_fraction < 1 - FRAMES_MISSED:
        found["frames"] = 1 / max(seen.frames_shown_fraction, 1 / MAX_FACTOR)
    if limits.power_watts is not None and state.power_watts is not None:
        found["power"] = heat_ratio * state.power_watts / limits.power_watts
    if limits.temperature_celsius is not None and state.temperature_celsius is not None:
        soon = state.temperature_celsius + max(state.celsius_per_second, 0.0) * HORIZON_SECONDS
        expected = AMBIENT_CELSIUS + heat_ratio * (soon - AMBIENT_CELSIUS)
        found["temperature"] = max(1 + (expected - limits.temperature_celsius) / SPAN_CELSIUS, 0.0)
    return found


def _down(points: Sequence[OperatingPoint], state: State, reason: str, pressure: float) -> State:
    wanted = points[state.level].work_per_second / min(pressure, MAX_FACTOR)
    lower = range(state.level + 1, len(points))
    level = next((i for i in lower if points[i].work_per_second <= wanted), len(points) - 1)
    if level == state.level:
        return replace(state, calm_seconds=0.0)
    patience = min(2 * state.patience_seconds, MAX_PATIENCE_SECONDS) if state.on_trial else state.patience_seconds
    return replace(
        state, level=level, reason=reason, held_seconds=0.0, calm_seconds=0.0, patience_seconds=patience, on_trial=False
    )


def _proven(state: State) -> State:
    """A rise that has held for long enough makes the next one come sooner."""
    if not state.on_trial or state.held_seconds < PROVEN_SECONDS:
        return state
    return replace(state, on_trial=False, patience_seconds=max(state.patience_seconds / 2, FIRST_PATIENCE_SECONDS))


def _smoothed(state: State, seen: Observation) -> State:
    """The state with the new watts and degrees in it; a sensor that falls silent is forgotten."""
    power_watts, celsius, slope = seen.power_watts, seen.temperature_celsius, 0.0
    if power_watts is not None and state.power_watts is not None:
        power_watts = _towards(state.power_watts, power_watts, seen.seconds, SMOOTHING_SECONDS)
    if celsius is not None and state.temperature_celsius is not None and seen.seconds > 0:
        celsius = _towards(state.temperature_celsius, celsius, seen.seconds, SMOOTHING_SECONDS)
        rise = (celsius - state.temperature_celsius) / seen.seconds
        slope = _towards(state.celsius_per_second, rise, seen.seconds, 2 * SMOOTHING_SECONDS)
    return replace(
        state, held_seconds=state.held_seconds + seen.seconds, power_watts=power_watts, temperature_celsius=celsius,
        celsius_per_second=slope,
    )  # fmt: skip


def _towards(old: float, new: float, seconds: float, time_constant_seconds: float) -> float:
    """A first-order low-pass, exact for a value that was constant meanwhile."""
    return new + (old - new) * math.exp(-seconds / time_constant_seconds)
