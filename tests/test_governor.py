"""The governor by hand, and on a device that is simulated: it heats up, throttles, and empties its battery."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.runtime import Motion, Painting, UserError
from outzoom.runtime.governor import (
    FIRST_PATIENCE_SECONDS,
    MAX_PATIENCE_SECONDS,
    MAX_RISE,
    SETTLE_SECONDS,
    Limits,
    Observation,
    State,
    decide,
    pressures,
)
from outzoom.runtime.operating_points import (
    OperatingPoint,
    call_work,
    longest_interval,
    operating_points,
    presets_from,
)

DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}  # fmt: skip
LCM = {**DDIM, "_class_name": "LCMScheduler"}
MOTION = Motion(fps=24, zoom_rate=2, keyframe_every=24)
PAINTINGS = {"quality": Painting(), "balanced": Painting(scheduler="dpm-solver", guided=(0.0, 0.6))}
POINTS = operating_points(PAINTINGS, MOTION, DDIM)


def point(work, interval_seconds=1.0):
    """A point whose keyframes are of so much work, at a frame per second."""
    return OperatingPoint("p", Painting(), 1, 1 / interval_seconds, 1.0, (work - 4.0,))


THREE = (point(40.0), point(20.0), point(10.0))


# operating points


def test_the_work_of_calls_by_hand():
    painting = Painting(steps=4, guided=(0.0, 0.5), whole_every=2)
    assert call_work(painting, DDIM) == (2.0, 0.8, 1.0, 0.4)
    assert call_work(replace(painting, guidance=1.0), DDIM) == (1.0, 0.4, 1.0, 0.4)


def test_points_go_from_what_was_asked_for_to_less_and_less_work():
    first = POINTS[0]
    assert (first.preset, first.painting, first.keyframe_every, first.pace) == ("quality", Painting(), 24, 1.0)
    work = [one.work_per_second for one in POINTS]
    assert work == sorted(work, reverse=True) and len(set(work)) == len(work)
    assert first.work_per_second == pytest.approx(44.0)  # 20 guided calls and the rest, each second
    assert [one.pace for one in POINTS] == sorted((one.pace for one in POINTS), reverse=True)
    assert POINTS[-1].pace == 0.25 and POINTS[-1].painting.steps == 7
    assert max(one.keyframe_every for one in POINTS) <= longest_interval(MOTION) == 47


def test_a_keyframe_interval_that_is_at_the_end_of_the_geometry_stays():
    points = operating_points(PAINTINGS, replace(MOTION, keyframe_every=47), DDIM)
    assert {one.keyframe_every for one in points} == {47}


def test_a_painting_that_its_scheduler_cannot_do_is_an_error_only_if_it_is_the_first():
    with pytest.raises(UserError, match="steps"):
        operating_points({"quality": Painting(steps=10**6)}, MOTION, DDIM)
    assert operating_points({"q": Painting(steps=1)}, MOTION, LCM)[0].painting.steps == 1


def test_quicker_presets_come_along_if_the_bundle_can_do_them(tiny_bundles):
    from outzoom.runtime import open_manifest

    manifest = open_manifest(tiny_bundles["onnxruntime-fp32"]).manifest
    assert list(presets_from("quality", manifest, {"seed": 3})) == ["quality", "balanced"]
    assert presets_from("balanced", manifest, {"seed": 3})["balanced"].seed == 3
    with pytest.raises(UserError, match="no preset 'qualty'"):
        presets_from("qualty", manifest, {})


# by hand


def test_pressures_by_hand():
    limits = Limits(power_watts=20, temperature_celsius=80)
    state = State(power_watts=10, temperature_celsius=70, celsius_per_second=0.5)
    seen = Observation(1, painting_seconds=0.45, frames_shown_fraction=0.8)
    assert pressures(THREE[0], THREE[0], limits, state, seen) == pytest.approx(
        {"painting": 0.5, "frames": 1.25, "power": 0.5, "temperature": 1 + (75 - 80) / 20}
    )
    above = pressures(THREE[0], THREE[1], limits, state, seen)  # twice the work of where it was measured
    assert above["painting"] == pytest.approx(1.0)
    assert above["power"] == pytest.approx(0.75)  # half of the watts are taken to be there at idle
    assert above["temperature"] == pytest.approx(1 + (25 + 1.5 * 50 - 80) / 20)


def test_painting_that_is_late_by_a_third_goes_to_the_first_point_that_saves_as_much():
    state = decide(THREE, Limits(), State(), Observation(1, painting_seconds=1.2))
    assert (state.level, state.reason, state.held_seconds) == (1, "painting", 0.0)
    state = decide(THREE, Limits(), State(), Observation(1, painting_seconds=2.0))
    assert state.level == 2


def test_power_that_is_over_the_budget_waits_for_the_last_change_to_show():
    limits = Limits(power_watts=10)
    state = decide(THREE, limits, State(), Observation(1, power_watts=12))
    assert (state.level, state.reason) == (1, "power")
    for _ in range(math.ceil(SETTLE_SECONDS) - 1):
        state = decide(THREE, limits, state, Observation(1, power_watts=12))
        assert state.level == 1
    assert decide(THREE, limits, state, Observation(1, power_watts=12)).level == 2


def test_what_presses_at_the_last_point_stays_there():
    state = State(level=2)
    for _ in range(20):
        state = decide(THREE, Limits(power_watts=1), state, Observation(1, power_watts=12, painting_seconds=9))
        assert state.level == 2


def test_room_is_used_after_a_calm_time_and_not_before():
    state = State(level=1)
    for _ in range(int(FIRST_PATIENCE_SECONDS) - 1):
        state = decide(THREE, Limits(), state, Observation(1, painting_seconds=0.1))
        assert state.level == 1
    state = decide(THREE, Limits(), state, Observation(1, painting_seconds=0.1))
    assert (state.level, state.reason, state.on_trial) == (0, "spare", True)


def test_much_room_is_used_faster_but_work_is_at_most_doubled_at_once():
    points = tuple(point(work) for work in (40.0, 30.0, 20.0, 15.0, 10.0))
    state = State(level=4, calm_seconds=FIRST_PATIENCE_SECONDS)
    assert decide(points, Limits(), state, Observation(1, painting_seconds=0.1)).level == 2
    assert decide(points, Limits(), state, Observation(1, painting_seconds=0.5)).level == 3  # 20 would take 1 s


def test_a_rise_that_fails_doubles_the_patience_and_one_that_holds_halves_it():
    tried = State(level=0, on_trial=True, held_seconds=20, patience_seconds=40)
    failed = decide(THREE, Limits(), tried, Observation(1, painting_seconds=5))
    assert (failed.patience_seconds, failed.on_trial) == (80, False)
    held = decide(THREE, Limits(), replace(tried, held_seconds=400), Observation(1, painting_seconds=0.1))
    assert (held.patience_seconds, held.on_trial) == (20, False)


def test_no_room_for_the_next_point_is_no_calm():
    state = State(level=1, calm_seconds=5)
    assert decide(THREE, Limits(), state, Observation(1, painting_seconds=0.5)).calm_seconds == 0


def test_without_any_measurement_nothing_is_done():
    state = State()
    for _ in range(100):
        state = decide(THREE, Limits(power_watts=1, temperature_celsius=30), state, Observation(1))
    assert state.level == 0


@pytest.mark.parametrize(
    "values",
    [{"power_watts": 0}, {"power_watts": math.nan}, {"power_watts": math.inf}, {"temperature_celsius": 20},
     {"temperature_celsius": 151}, {"temperature_celsius": math.nan}],
    ids=str,
)  # fmt: skip
def test_a_limit_out_of_range_is_refused_with_its_option(values):
    with pytest.raises(UserError, match=r"--power-budget|--temperature-limit"):
        Limits(**values)


values = st.none() | st.floats(0, 1000)
observations = st.builds(
    Observation, st.floats(0.1, 5), values, st.none() | st.floats(0, 1), values, st.none() | st.floats(-50, 200)
)


@settings(max_examples=150, deadline=None)
@given(seen=st.lists(observations, max_size=60), power=st.none() | st.floats(0.1, 100))
def test_whatever_is_measured_the_rules_hold(seen, power):
    limits = Limits(power_watts=power, temperature_celsius=80)
    state, again, since_rise = State(), State(), math.inf
    for one in seen:
        before, state = state, decide(POINTS, limits, state, one)
        again = decide(POINTS, limits, again, one)
        assert state == again  # the same measurements, the same decisions
        assert 0 <= state.level < len(POINTS)
        assert FIRST_PATIENCE_SECONDS <= state.patience_seconds <= MAX_PATIENCE_SECONDS
        since_rise += one.seconds
        if state.level < before.level:
            rise = POINTS[state.level].work_per_second / POINTS[before.level].work_per_second
            assert before.level - state.level == 1 or rise <= MAX_RISE
            assert since_rise >= FIRST_PATIENCE_SECONDS - 1e-6 and state.reason == "spare"
            since_rise = 0.0
        if state.level > before.level:
            assert state.reason in ("painting", "frames", "power", "temperature")


# simulated


@dataclass
class Device:
    """A device that paints: first-order heat, a clock that is throttled when it gets hot, a battery that is emptied.

    Power is idle + dynamic * clock^3 * utilisation; temperature goes to ambient + resistance * power within `tau`.
    """

    seconds_per_work: float = 0.015
    idle_watts: float = 4.0
    dynamic_watts: float = 16.0
    celsius_per_watt: float = 3.2
    ambient_celsius: float = 25.0
    tau_seconds: float = 60.0
    throttle_celsius: float = 85.0
    battery_wh: float = math.inf
    low_battery_clock: float = 1.0  # the highest clock when less than a fifth is left
    temperature_celsius: float = 25.0
    clock: float = 1.0
    power_watts: float = 4.0
    capacity_wh: float = field(init=False)

    def __post_init__(self):
        self.capacity_wh = self.battery_wh

    def painting_seconds(self, point):
        return point.work * self.seconds_per_work / self.clock

    def run(self, point, seconds):
        """One step of a second or so; where painting does not keep up the camera slows, so at most it is busy."""
        utilisation = min(self.painting_seconds(point) / point.interval_seconds, 1.0)
        self.power_watts = self.idle_watts + self.dynamic_watts * self.clock**3 * utilisation
        goal = self.ambient_celsius + self.celsius_per_watt * self.power_watts
        self.temperature_celsius = goal + (self.temperature_celsius - goal) * math.exp(-seconds / self.tau_seconds)
        self.battery_wh -= self.power_watts * seconds / 3600
        low = self.battery_wh < self.capacity_wh / 5
        highest = self.low_battery_clock if low else 1.0
        if self.temperature_celsius > self.throttle_celsius:
            self.clock = max(self.clock - 0.05, 0.4)
        elif self.temperature_celsius < self.throttle_celsius - 5:
            self.clock = min(self.clock + 0.05, highest)
        self.clock = min(self.clock, highest)


@dataclass
class Trace:
    """What happened each second."""

    levels: list = field(default_factory=list)
    late: list = field(default_factory=list)  # whether a keyframe took longer than its interval
    watts: list = field(default_factory=list)
    celsius: list = field(default_factory=list)
    clocks: list = field(default_factory=list)

    @property
    def changes(self):
        return int(np.count_nonzero(np.diff(self.levels)))


def simulate(device, limits=None, seconds=1800, governed=True, noise=0.0, change=lambda second, device: None):
    rng = np.random.default_rng(0)
    state, trace = State(), Trace()
    for second in range(seconds):
        change(second, device)
        here = POINTS[state.level]
        device.run(here, 1.0)
        took = device.painting_seconds(here)
        jitter = 1 + noise * rng.standard_normal(3)
        trace.levels.append(state.level)
        trace.late.append(took > here.interval_seconds)
        trace.watts.append(device.power_watts)
        trace.celsius.append(device.temperature_celsius)
        trace.clocks.append(device.clock)
        if governed:
            seen = Observation(
                1.0, took * jitter[0], 1.0, device.power_watts * jitter[1], device.temperature_celsius * jitter[2]
            )
            state = decide(POINTS, limits or Limits(), state, seen)
    return trace


def test_a_device_with_room_stays_at_the_best_point():
    trace = simulate(Device())
    assert set(trace.levels) == {0} and not any(trace.late)


def test_a_slow_device_gets_to_a_point_that_it_can_do_and_stays_there():
    trace = simulate(Device(seconds_per_work=0.045))
    assert trace.late[0] and not any(trace.late[30:])
    assert trace.changes <= 2


def test_a_device_that_throttles_is_late_without_a_governor_and_on_time_with_one():
    def hot():
        return Device(seconds_per_work=0.019, celsius_per_watt=4.5)

    alone, governed = simulate(hot(), governed=False), simulate(hot())
    assert np.mean(alone.late) > 0.3
    assert np.mean(governed.late) < 0.02
    assert governed.changes <= 30  # in half an hour


def test_a_temperature_limit_below_throttling_is_kept_and_the_clock_stays_up():
    device = Device(seconds_per_work=0.019, celsius_per_watt=4.5)
    trace = simulate(device, Limits(temperature_celsius=75), seconds=3600)
    assert max(trace.celsius) < 77
    assert min(trace.clocks) == 1.0 and not any(trace.late)
    assert np.mean(trace.celsius[600:]) > 60  # what is allowed is used
    assert trace.changes <= 30


@pytest.mark.parametrize("budget", [9.0, 12.0, 15.0])
def test_a_power_budget_is_kept_and_used(budget):
    trace = simulate(Device(), Limits(power_watts=budget), seconds=3600)
    settled = np.array(trace.watts[60:])
    assert np.mean(settled > budget) < 0.03
    assert np.mean(settled) > 0.6 * budget
    assert not any(trace.late) and trace.changes <= 30


def test_a_limit_between_two_points_makes_ever_fewer_changes():
    """The next better point takes a little more than the budget, but looks as if it took less until it is tried."""
    limits = Limits(power_watts=12.2)
    trace = simulate(Device(idle_watts=0.1, dynamic_watts=30.0), limits, seconds=4 * 3600)
    changes = np.flatnonzero(np.diff(trace.levels))
    half_hours = np.histogram(changes, bins=8, range=(0, 4 * 3600))[0]
    assert half_hours[0] > half_hours[-1] > 0  # it is tried again, for the limit may have moved
    assert len(changes) < 60  # at the first patience all the time it would be more than a thousand
    assert np.mean(np.array(trace.watts[60:]) > 12.2) < 0.05


def test_noise_of_the_sensors_is_not_followed():
    still = simulate(Device(), Limits(power_watts=12, temperature_celsius=80), noise=0.0)
    noisy = simulate(Device(), Limits(power_watts=12, temperature_celsius=80), noise=0.05)
    assert noisy.changes <= still.changes + 15


def test_on_battery_the_clock_falls_and_keyframes_stay_on_time_until_it_is_charged_again():
    def plug_in(second, device):
        if second == 1800:
            device.battery_wh = device.capacity_wh = 1000.0

    device = Device(seconds_per_work=0.017, battery_wh=7.0, low_battery_clock=0.5)
    trace = simulate(device, seconds=3600, change=plug_in)
    low = np.array(trace.clocks) < 0.6
    assert low.any() and not low[1830:].any()
    assert {0} == set(trace.levels[:60]) and max(trace.levels) > 0
    assert np.mean(np.array(trace.late)[low]) < 0.02
    assert set(trace.levels[2400:]) == {0}  # plugged in: back to what was asked for


def test_a_budget_makes_the_battery_last_longer():
    def minutes(limits):
        trace = simulate(Device(battery_wh=8.0), limits, seconds=5400)
        return np.count_nonzero(np.cumsum(trace.watts) / 3600 < 8.0) / 60

    assert minutes(Limits(power_watts=8)) > 1.5 * minutes(Limits())
