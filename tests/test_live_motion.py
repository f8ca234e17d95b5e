"""The live zoom's camera and its frame clock in simulated time, and the sensors on a made-up /sys."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.runtime.pacing import WINDOW_SECONDS, FrameClock, Pacing, RecentFrames, pacing
from outzoom.runtime.sensors import PowerMeter, temperature_celsius
from outzoom.runtime.zoom_camera import RESERVE_SECONDS, Camera

FPS = 24
STEP = math.log(2)  # the depth of a keyframe: the view gets twice as wide
LOOKAHEAD = 2


def drive(painting_seconds, wanted_speed, seconds, estimate=None):
    """Depths and speeds of a camera, frame by frame, while keyframes are painted one after the other as in painter.py.

    `painting_seconds` gives what keyframe i takes, `estimate` what it is expected to take.
    """
    camera, painted, started, index = Camera(), 0.0, 0.0, 0
    depths, speeds = [], []
    for frame in range(round(seconds * FPS)):
        now = frame / FPS
        expected = (estimate or painting_seconds)(index)
        if started is not None and now >= started + painting_seconds(index):
            painted, index, started = painted + STEP, index + 1, None
        passed = math.floor(camera.depth / STEP + 1e-9)
        if started is None and round(painted / STEP) - passed < 1 + LOOKAHEAD:
            started = now
        due = expected if started is None else expected - (now - started)
        camera = camera.advanced(1 / FPS, wanted_speed, painted, due, expected)
        assert camera.depth <= painted + 1e-12
        depths.append(camera.depth)
        speeds.append(camera.speed)
    return np.array(depths), np.array(speeds)


def test_with_painting_in_time_the_speed_is_what_was_asked_for():
    _, speeds = drive(lambda i: 0.9, STEP, 60)
    assert speeds[10 * FPS :] == pytest.approx(STEP, rel=1e-3)


def test_with_slow_painting_the_speed_settles_at_what_painting_sustains():
    _, speeds = drive(lambda i: 5.0, STEP, 120)
    assert speeds[60 * FPS :] == pytest.approx(STEP / 5, rel=0.05)


def test_painting_that_varies_by_a_tenth_is_hardly_seen():
    rng = np.random.default_rng(0)
    times = 5 * (1 + 0.1 * rng.uniform(-1, 1, 100))
    _, speeds = drive(lambda i: times[i], STEP, 120, estimate=lambda i: 5.0)
    assert speeds[60 * FPS :] == pytest.approx(STEP / 5, rel=0.2)


def test_a_keyframe_that_comes_far_too_late_makes_the_camera_glide_to_a_hold():
    depths, speeds = drive(lambda i: 1.0 if i < 10 else 1000.0, STEP, 60, estimate=lambda i: 1.0)
    assert speeds[-1] < 1e-3
    assert depths[-1] == pytest.approx(10 * STEP, abs=1e-3)  # all that is painted is shown
    assert np.all(np.diff(depths) >= 0)
    # as smooth as at the start of a zoom: the speed of the picture never jumps
    assert np.abs(np.diff(speeds)).max() < STEP * (1 - math.exp(-1 / FPS / RESERVE_SECONDS)) * 1.01


def test_a_camera_with_nothing_painted_ahead_stands_still():
    assert Camera(1.0, 0.5).advanced(1 / FPS, 1.0, 1.0, 3.0, 3.0) == Camera(1.0, 0.0)


def test_one_frame_by_hand():
    moved = Camera(0.0, 0.0).advanced(0.3, 1.0, 1.0, 1.0, 2.0)  # aims for 1 / (1 + half of 2) = 0.5
    assert moved.speed == pytest.approx(0.5 * (1 - 1 / math.e))
    assert moved.depth == pytest.approx(0.3 * moved.speed)


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.floats(0.05, 20), min_size=5, max_size=5),
    guesses=st.lists(st.floats(0.0, 20), min_size=5, max_size=5),
    wanted=st.floats(0.01, 3),
)
def test_whatever_painting_takes_the_camera_never_jumps_turns_back_or_runs_ahead(times, guesses, wanted):
    depths, speeds = drive(lambda i: times[i % 5], wanted, 30, estimate=lambda i: guesses[i % 5])
    assert np.all(np.diff(depths) >= 0)
    assert np.diff(depths, prepend=0).max() <= wanted / FPS * (1 + 1e-9)
    assert speeds.max() <= wanted * (1 + 1e-9)


@given(depth=st.floats(0, 1e6), ahead=st.floats(0, 10), seconds=st.floats(0.001, 100), speed=st.floats(0, 10))
def test_a_frame_that_comes_late_does_not_run_beyond_what_is_painted(depth, ahead, seconds, speed):
    moved = Camera(depth, speed).advanced(seconds, speed, depth + ahead, 0.0, 1.0)
    assert depth <= moved.depth <= depth + ahead


# pacing


def test_frames_are_due_at_even_times_and_those_that_are_too_late_are_left_out():
    clock = FrameClock(start=100.0, fps=10)
    assert clock.due(7) == pytest.approx(100.7)
    assert clock.following(7, 100.71) == 8  # in time
    assert clock.following(7, 100.85) == 8  # due already, but the last that is
    assert clock.following(7, 101.25) == 12  # 8 to 11 are left out
    assert clock.following(-1, 100.0) == 0


def test_pacing_by_hand():
    times = [0.0, 0.1, 0.2, 0.3, 0.5]
    found = pacing(times, dropped=1)
    assert (found.fps, found.frames, found.dropped) == (pytest.approx(8.0), 5, 1)
    assert (found.interval_ms, found.interval_max_ms) == pytest.approx((100.0, 200.0))
    assert found.interval_p95_ms == pytest.approx(185.0)  # of 100, 100, 100, 200: 0.85 of the way from third to last
    assert pacing([1.0], 0) == Pacing(0.0, 1, 0, 0.0, 0.0, 0.0, 0.0)


def test_frames_older_than_the_window_are_forgotten():
    recent = RecentFrames()
    for i in range(100):
        recent.add(i / 2, dropped=i % 2)
    found = recent.pacing()
    assert found.frames == 2 * WINDOW_SECONDS + 1
    assert found.fps == pytest.approx(2.0)
    assert found.dropped == WINDOW_SECONDS
    recent.clear()
    assert recent.pacing().frames == 0


# sensors


def make(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_machine_without_sensors_tells_nothing(tmp_path):
    meter = PowerMeter(tmp_path)
    assert (meter.read_watts(), meter.method, temperature_celsius(tmp_path)) == (None, "not measured", None)


def test_rapl_gives_the_watts_of_all_sockets_also_when_a_counter_goes_round(tmp_path):
    powercap, clock = tmp_path / "class/powercap", Clock()
    make(powercap / "intel-rapl:0", name="package-0", energy_uj=5_000_000, max_energy_range_uj=10_000_000)
    make(powercap / "intel-rapl:0:0", name="core", energy_uj=1, max_energy_range_uj=10_000_000)
    make(powercap / "intel-rapl:1", name="package-1", energy_uj=9_000_000, max_energy_range_uj=10_000_000)
    meter = PowerMeter(tmp_path, clock)
    assert meter.read_watts() is None  # counters tell nothing at first
    clock.now = 2.0
    (powercap / "intel-rapl:0/energy_uj").write_text("25000000")
    (powercap / "intel-rapl:1/energy_uj").write_text("3000000")
    assert (meter.read_watts(), meter.method) == (pytest.approx((20 + 4) / 2), "RAPL")


def test_the_whole_board_is_taken_where_rapl_has_it(tmp_path):
    powercap, clock = tmp_path / "class/powercap", Clock()
    make(powercap / "intel-rapl:0", name="package-0", energy_uj=0)
    make(powercap / "intel-rapl:1", name="psys", energy_uj=0)
    meter = PowerMeter(tmp_path, clock)
    meter.read_watts()
    clock.now = 1.0
    (powercap / "intel-rapl:1/energy_uj").write_text("7000000")
    assert meter.read_watts() == pytest.approx(7.0)


def test_counters_that_may_not_be_read_are_passed_over_for_the_battery(tmp_path):
    make(tmp_path / "class/powercap/intel-rapl:0", name="package-0")  # energy_uj is for root alone
    supplies = tmp_path / "class/power_supply"
    make(supplies / "AC", type="Mains", online=0)
    make(supplies / "BAT0", type="Battery", status="Discharging", power_now=9_500_000)
    make(supplies / "BAT1", type="Battery", status="Discharging", current_now=-500_000, voltage_now=12_000_000)
    make(supplies / "hidpp", type="Battery", status="Discharging", scope="Device", power_now=1_000_000)
    meter = PowerMeter(tmp_path)
    assert (meter.read_watts(), meter.method) == (pytest.approx(9.5 + 6.0), "battery")
    for name in ("BAT0", "BAT1"):
        (supplies / name / "status").write_text("Charging")
    assert (meter.read_watts(), meter.method) == (None, "not measured")


def test_the_hottest_zone_counts_and_what_is_no_temperature_does_not(tmp_path):
    for number, content in enumerate([48_000, 61_500, 0, -274_000, 10**9, "N/A", ""]):
        make(tmp_path / f"class/thermal/thermal_zone{number}", temp=content)
    assert temperature_celsius(tmp_path) == 61.5
