"""The energy meter on made-up counters, a recorded one and a made-up /sys, and the energy of a zoom."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from outzoom.benchmarks import BenchSettings, read_results, run_bench
from outzoom.benchmarks.compare import compare
from outzoom.benchmarks.energy import (
    Counters,
    EnergyMeter,
    Power,
    Recorder,
    find_sources,
    gpu_reader,
    nvml_source,
    obstacle,
    rails_reader,
    rapl_source,
)
from outzoom.benchmarks.measure import measure
from outzoom.benchmarks.readme import ROOT
from outzoom.benchmarks.results import EnergyResult
from outzoom.benchmarks.settings import from_json, to_json
from outzoom.benchmarks.zoom_energy import FrameSpan, ZoomMeter, energy_of, modelled_energy
from outzoom.runtime import UserError

RANGE_UJ = 65_532_610_987  # of an AMD Ryzen's package: 65.5 kJ
COMMITTED = ROOT / "benchmarks" / "results" / "demo-bench.json"
RECORDED = json.loads((Path(__file__).parent / "golden" / "nvml-h200.json").read_text("utf-8"))
QUICK = {"seconds": 0.3, "keyframe_every": 4, "steps": 2, "runs": 3, "warm_ups": 1}


def make(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def package(sys, number=0, name=None, energy_uj=0, range_uj=RANGE_UJ):
    folder = sys / f"class/powercap/intel-rapl:{number}"
    make(folder, name=name or f"package-{number}", energy_uj=energy_uj, max_energy_range_uj=range_uj)
    return folder / "energy_uj"


def replay(source, readings):
    """A recorder that heard them all: (seconds, what to do before the source is read)."""
    recorder = Recorder(source)
    for seconds, prepare in readings:
        prepare()
        recorder.read(seconds)
    return recorder


def counter_trace(tmp_path, trace):
    """A recorder of one package's counter: (seconds, microjoules), None for a reading that fails."""
    file = package(tmp_path, energy_uj=trace[0][1])
    source = rapl_source(tmp_path)

    def say(value):
        return lambda: file.unlink(missing_ok=True) if value is None else file.write_text(f"{value}\n")

    return replay(source, [(seconds, say(value)) for seconds, value in trace])


# counters


def test_a_counters_growth_is_the_energy_and_between_readings_it_grows_evenly(tmp_path):
    recorder = counter_trace(tmp_path, [(0, 5_000_000), (1, 15_000_000), (2, 45_000_000)])
    assert recorder.between(0, 2).joules == pytest.approx(40)
    assert recorder.between(0.5, 1.5).joules == pytest.approx(5 + 15)


def test_a_counter_that_goes_round_goes_on(tmp_path):
    recorder = counter_trace(tmp_path, [(0, RANGE_UJ - 10_000_000), (1, RANGE_UJ - 1_000_000), (2, 7_000_000)])
    assert recorder.between(0, 2).joules == pytest.approx(17, abs=1e-3)


def test_a_gap_in_the_readings_costs_nothing_since_the_counter_goes_on(tmp_path):
    recorder = counter_trace(
        tmp_path, [(0, 0), (1, 10_000_000), (2, None), (3, None), (8, 80_000_000), (9, 90_000_000)]
    )
    assert recorder.between(0, 9).joules == pytest.approx(90)
    assert recorder.between(1, 8).joules == pytest.approx(70)


def test_a_gap_in_which_a_counter_may_have_gone_round_twice_is_unknown(tmp_path):
    recorder = counter_trace(tmp_path, [(0, 0), (1, 10_000_000), (100, 20_000_000), (101, 30_000_000)])
    assert recorder.between(0, 101).joules is None
    assert recorder.between(100, 101).joules == pytest.approx(10)


def test_a_counter_that_vanishes_leaves_the_rest_unknown(tmp_path):
    recorder = counter_trace(tmp_path, [(0, 0), (1, 10_000_000), (2, None), (3, None), (4, None)])
    assert recorder.between(0, 1).joules == pytest.approx(10)
    assert recorder.between(0, 4).joules is None


def test_a_counter_that_is_there_only_later_counts_from_then(tmp_path):
    file = package(tmp_path)
    source = rapl_source(tmp_path)
    recorder = replay(source, [(0, file.unlink), (1, lambda: file.write_text("1000000")), (2, lambda: None)])
    assert recorder.between(0, 2).joules is None
    assert recorder.between(1, 2).joules == 0


def test_a_counter_that_is_set_back_is_not_taken_to_have_gone_round(tmp_path):
    trace = [(0, 30_000_000_000), (1, 30_010_000_000), (2, 0), *((2 + n, 10_000_000 * n) for n in range(1, 19))]
    recorder = counter_trace(tmp_path, trace)
    assert recorder.between(1, 2).joules is None
    assert recorder.between(0, 20).joules == pytest.approx(10 * 20)  # a second of twenty is made up for


@pytest.mark.parametrize("content", ["", "N/A", "12 34", "\0\0"])
def test_a_reading_that_is_no_number_is_a_gap(tmp_path, content):
    recorder = counter_trace(tmp_path, [(0, 0), (1, content), (2, 20_000_000)])
    assert recorder.between(0, 2).joules == pytest.approx(20)


def test_two_readings_of_one_renewal_are_no_leap():
    counts = iter([0.0, 0.0, 0.2, 0.2])
    recorder = replay(
        Counters("RAPL", lambda: {"package-0": next(counts)}),
        [(t, lambda: None) for t in (0, 0.00099, 0.00101, 0.002)],
    )
    assert recorder.between(0, 0.002).joules == pytest.approx(0.2)


def test_sockets_are_added_up_and_the_whole_board_is_not_added_to_them(tmp_path):
    for number in (0, 1):
        package(tmp_path, number)
    assert set(rapl_source(tmp_path).read()) == {"intel-rapl:0", "intel-rapl:1"}
    package(tmp_path, 2, "psys")
    assert set(rapl_source(tmp_path).read()) == {"intel-rapl:2"}


def test_when_one_of_two_sockets_can_not_be_read_none_is(tmp_path):
    files = [package(tmp_path, number) for number in (0, 1)]
    source = rapl_source(tmp_path)

    def grow(*values_uj):
        def write():
            for file, value_uj in zip(files, values_uj, strict=True):
                file.write_text(str(value_uj)) if value_uj is not None else file.unlink()

        return write

    recorder = replay(
        source, [(0, grow(0, 0)), (1, grow(3_000_000, None)), (2, grow(6_000_000, 4_000_000)), (3, lambda: None)]
    )
    assert recorder.between(0, 2).joules == pytest.approx(10)


# which counters


def test_a_machine_without_counters_has_no_sources(tmp_path):
    assert find_sources(sys=tmp_path, tegra=tmp_path / "none") == []
    assert not EnergyMeter([])
    assert obstacle(tmp_path) is None


def test_counters_that_may_not_be_read_are_told_of(tmp_path):
    folder = tmp_path / "class/powercap/intel-rapl:0"
    make(folder, name="package-0")
    (folder / "energy_uj").mkdir()  # reading it fails, also for root
    assert find_sources(sys=tmp_path, tegra=tmp_path / "none") == []
    assert "chmod" in obstacle(tmp_path)
    (folder / "energy_uj").rmdir()
    package(tmp_path)
    assert obstacle(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_counter_of_roots_is_not_read(tmp_path):
    package(tmp_path).chmod(0)
    assert rapl_source(tmp_path) is None
    assert "root" in obstacle(tmp_path)


def test_the_battery_is_read_where_the_processor_can_not_be(tmp_path):
    battery = tmp_path / "class/power_supply/BAT0"
    make(battery, type="Battery", status="Discharging", power_now=9_000_000)
    (source,) = find_sources(sys=tmp_path, tegra=tmp_path / "none")
    assert source.method == "battery"
    package(tmp_path)
    (source,) = find_sources(sys=tmp_path, tegra=tmp_path / "none")
    assert source.method == "RAPL"


def test_the_processor_alone_is_not_told_of_work_on_a_gpu(tmp_path, monkeypatch):
    package(tmp_path)
    monkeypatch.setattr("outzoom.benchmarks.energy.nvml_source", lambda: None)
    assert find_sources(gpu=True, sys=tmp_path, tegra=tmp_path / "none") == []
    graphics = Counters("NVML", lambda: {"0": 1.0}, resolution_seconds=0.1)
    monkeypatch.setattr("outzoom.benchmarks.energy.nvml_source", lambda: graphics)
    found = EnergyMeter(find_sources(gpu=True, sys=tmp_path, tegra=tmp_path / "none"))
    assert (found.method, found.resolution_seconds) == ("RAPL + NVML", 0.1)


class Gpus:
    """Two GPUs as zeus gives them, the first of which is too old for a counter; lost when `joules` is None."""

    millijoules = 5000

    def __len__(self):
        return 2

    def supports_get_total_energy_consumption(self, index):
        return index == 1

    def get_total_energy_consumption(self, index):
        assert index == 1
        if self.millijoules is None:
            raise RuntimeError("GPU is lost")
        return self.millijoules


def test_gpus_with_a_counter_are_read_and_a_lost_one_is_a_gap():
    gpus = Gpus()
    read = gpu_reader(gpus)
    assert read() == {"1": 5.0}
    gpus.millijoules = None
    assert read() is None


def recorded_gpu(rows):
    """A recorder that hears a real GPU's counter again, of these rows of (seconds, millijoules, milliwatts)."""
    now = {}
    source = Counters("NVML", lambda: {"0": now["millijoules"] / 1e3}, resolution_seconds=0.1)
    return replay(source, [(row[0], lambda row=row: now.update(millijoules=row[1])) for row in rows])


def test_a_recorded_gpus_work_takes_the_power_that_its_counter_tells():
    rows, (start, end) = RECORDED["rows"], RECORDED["work"]
    inside = [row for row in rows if start + 0.2 <= row[0] <= end - 0.2]
    told_watts = (inside[-1][1] - inside[0][1]) / 1e3 / (inside[-1][0] - inside[0][0])
    joules, seconds = recorded_gpu(rows).between(start, end)
    assert joules / seconds == pytest.approx(told_watts, rel=0.01)  # its edges are a tenth of a second wide
    assert joules / seconds == pytest.approx(RECORDED["meter_watts"]["work"], rel=0.005)  # as was said beside the GPU
    assert 600 < joules / seconds < 700  # of a card of 700 W
    rest_joules, rest_seconds = recorded_gpu(rows).between(0.5, 5.5)
    assert rest_joules / rest_seconds == pytest.approx(122, abs=2)  # which is the power that the driver says, too


@pytest.mark.parametrize("every", [2, 10, 30])
def test_readings_of_a_recorded_gpu_that_are_missing_cost_nothing_from_the_first_to_the_last(every):
    rows = RECORDED["rows"]
    fewer = [*rows[:-1:every], rows[-1]]
    joules, _ = recorded_gpu(fewer).between(rows[0][0], rows[-1][0])
    assert joules == pytest.approx((rows[-1][1] - rows[0][1]) / 1e3, rel=1e-9)


def test_without_an_nvidia_gpu_zeus_gives_no_source():
    zeus = pytest.importorskip("zeus.device.gpu.nvidia")
    if zeus.nvml_is_available():
        pytest.skip("there is one")
    assert nvml_source() is None


@pytest.mark.parametrize(
    ("rails", "joules"),
    [
        ({"total_energy_mj": 9000.0, "cpu_energy_mj": 2000.0, "gpu_energy_mj": 3000.0}, 9.0),
        ({"cpu_energy_mj": 2000.0, "gpu_energy_mj": 3000.0}, 5.0),
        ({}, None),
    ],
)
def test_of_a_jetson_the_whole_module_counts_or_else_its_processors(rails, joules):
    jetson = pytest.importorskip("zeus.device.soc.jetson")

    class Soc:
        def get_total_energy_consumption(self):
            return jetson.JetsonMeasurement(**rails)

    found = rails_reader(Soc())()
    assert (sum(found.values()) if found else None) == joules


# powers


def battery_trace(tmp_path, trace):
    supply = tmp_path / "class/power_supply/BAT0"
    make(supply, type="Battery", status="Discharging", power_now=0)
    (source,) = find_sources(sys=tmp_path, tegra=tmp_path / "none")

    def say(watts):
        def write():
            (supply / "status").write_text("Charging" if watts is None else "Discharging")
            (supply / "power_now").write_text(str(round((watts or 0) * 1e6)))

        return write

    return replay(source, [(seconds, say(watts)) for seconds, watts in trace])


def test_a_power_is_integrated_over_time(tmp_path):
    recorder = battery_trace(tmp_path, [(0, 10), (1, 10), (2, 20), (3, 20)])
    assert recorder.between(0, 3).joules == pytest.approx(10 + 15 + 20)


def test_a_power_is_unknown_while_the_battery_is_charged(tmp_path):
    recorder = battery_trace(tmp_path, [(t, 10 if t < 4 or t > 12 else None) for t in range(21)])
    assert recorder.between(0, 20).joules is None
    assert recorder.between(0, 3).joules == pytest.approx(30)
    assert recorder.between(13, 20).joules == pytest.approx(70)


# the meter


def test_a_meter_sees_real_files_change_in_real_time(tmp_path):
    file, stop = package(tmp_path), threading.Event()

    def count():
        began = time.monotonic()
        while not stop.wait(0.002):
            file.write_text(str(int((time.monotonic() - began) * 20e6)))  # 20 W; sometimes read half-written

    writer = threading.Thread(target=count)
    writer.start()
    meter = EnergyMeter([rapl_source(tmp_path)], interval_seconds=0.02)
    try:
        meter.start()
        start = meter.clock()
        time.sleep(1.0)
        found = meter.between(start, meter.clock())
        meter.stop()
    finally:
        stop.set()
        writer.join()
    assert found.joules / found.seconds == pytest.approx(20, rel=0.2)


def test_a_stretch_is_unknown_where_one_of_several_sources_is():
    meter = EnergyMeter(
        [Counters("RAPL", lambda: {"0": time.monotonic()}), Power("battery", lambda: None, 0.1)], interval_seconds=0.01
    )
    meter.start()
    start = meter.clock()
    time.sleep(0.1)
    assert meter.between(start, meter.clock()).joules is None
    meter.stop()


class Machine:
    """A clock that sleeping moves, and a counter of what work and rest take."""

    def __init__(self, idle_watts=5.0, resolution_seconds=0.001):
        self.now, self.joules, self.idle_watts = 0.0, 0.0, idle_watts
        self.source = Counters("RAPL", lambda: {"0": self.joules}, resolution_seconds=resolution_seconds)
        self.meter = EnergyMeter([self.source], interval_seconds=3600, clock=lambda: self.now)

    def spend(self, seconds, watts=None):
        for _ in range(10):
            self.now += seconds / 10
            self.joules += seconds / 10 * (self.idle_watts if watts is None else watts)
            self.meter.read()

    def zoom(self, settings, painting_watts=25.0):
        """Twice a frame with a keyframe and two between."""
        with ZoomMeter(self.meter, settings, sleep=self.spend) as zoom:
            for _ in range(2):
                for seconds, watts, is_painted in ((2.0, painting_watts, True), (0.1, 7, False), (0.1, 7, False)):
                    zoom.frame_begins()
                    self.spend(seconds, watts)
                    zoom.frame_ends(is_painted)
                    self.spend(0.5)  # something that is no part of the zoom
        return zoom


def test_a_zoom_is_measured_above_idle_power():
    zoom = Machine().zoom(BenchSettings(battery_wh=50))
    found = zoom.result()
    assert (found.method, found.is_measured, found.idle_watts) == ("measured: RAPL", True, pytest.approx(5))
    assert found.keyframe_joules == pytest.approx(2 * (25 - 5) - 0.1 * (7 - 5), rel=1e-4)
    assert found.frame_joules == pytest.approx((2 * 20 + 0.1 * 2 * 2) / 3, rel=1e-4)
    assert found.mean_watts == pytest.approx((2 * 25 + 0.2 * 7) / 2.2, rel=1e-4)
    assert found.frames_per_joule == pytest.approx(1 / found.frame_joules)
    assert found.battery_hours == pytest.approx(50 / found.mean_watts, rel=1e-3)
    assert zoom.warning is None


def test_frames_that_a_slow_counter_can_not_tell_apart_have_the_zooms_mean_power():
    found = Machine(resolution_seconds=0.5).zoom(BenchSettings()).result()
    above = found.mean_watts - 5
    assert found.keyframe_joules == pytest.approx(above * (2.0 - 0.1), rel=1e-3)


def test_a_zoom_shorter_than_a_counters_steps_is_not_measured():
    zoom = Machine(resolution_seconds=30.0).zoom(BenchSettings())
    assert zoom.result() is None
    assert "too short" in zoom.warning
    assert "60 s or longer" in zoom.warning


def test_a_zoom_that_takes_no_more_than_rest_is_not_measured():
    zoom = Machine(idle_watts=100.0).zoom(BenchSettings())
    assert zoom.result() is None
    assert "no more" in zoom.warning


def test_a_zoom_in_which_the_counter_vanishes_is_not_measured():
    machine = Machine()
    read, machine.source.read = machine.source.read, lambda: read() if machine.now < 6 else None
    zoom = machine.zoom(BenchSettings())
    assert zoom.result() is None
    assert "part of the time" in zoom.warning


def test_where_nothing_can_be_read_nobody_rests():
    def sleep(seconds):
        raise AssertionError(seconds)

    with ZoomMeter(EnergyMeter([]), BenchSettings(), sleep) as zoom:
        zoom.frame_begins()
        zoom.frame_ends(True)
    assert (zoom.result(), zoom.warning) == (None, None)


def test_a_zoom_of_keyframes_alone_has_an_energy():
    spans = [FrameSpan(0, 1, True), FrameSpan(1, 3, True)]
    found = energy_of([10.0, 30.0], spans, 2.0, True)
    assert (found.keyframe_joules, found.frame_joules, found.mean_watts) == (
        17.0,
        17.0,
        pytest.approx(40 / 3, abs=1e-4),
    )


# bundles


def test_a_bundles_zoom_is_measured_with_what_its_process_takes(tiny_bundles, tmp_path, monkeypatch):
    source = Counters("RAPL", lambda: {"0": 3 * time.monotonic() + 20 * time.process_time()})
    monkeypatch.setattr("outzoom.benchmarks.zoom_energy.find_sources", lambda gpu: [source])
    settings = BenchSettings(**QUICK, idle_seconds=0.5, battery_wh=10)
    began = time.monotonic()
    result = measure(tiny_bundles["onnxruntime-fp32"], settings, began, None, lambda text: None)
    assert result.warnings == ()
    assert result.energy.method == "measured: RAPL"
    assert 2.9 < result.energy.idle_watts < 15
    assert result.energy.keyframe_joules > 0
    assert result.energy.mean_watts > result.energy.idle_watts
    assert from_json(to_json(result), type(result)) == result


def test_a_zooms_energy_is_modelled_where_it_can_not_be_measured(tiny_bundles):
    bundle = tiny_bundles["onnxruntime-fp32"]
    settings = BenchSettings(**QUICK, power_model="raspberry-pi-5", battery_wh=50)
    found = modelled_energy(bundle, settings)
    assert (found.method, found.is_measured) == ("modelled: raspberry-pi-5", False)
    assert 0 < found.frame_joules < found.keyframe_joules
    assert found.mean_watts > found.idle_watts > 0
    assert found.battery_hours == pytest.approx(50 / found.mean_watts, rel=1e-3)
    more = modelled_energy(bundle, replace(settings, steps=4))
    assert more.keyframe_joules > found.keyframe_joules
    assert modelled_energy(bundle, replace(settings, guidance=1.0)).keyframe_joules < found.keyframe_joules


def test_a_benchmark_says_which_device_it_modelled(tiny_bundles, tmp_path, monkeypatch):
    settings = BenchSettings(**QUICK, power_model="raspberry-pi-5")
    results = run_bench([tiny_bundles["onnxruntime-fp32"]], tmp_path / "out", settings)
    (bundle,) = read_results(tmp_path / "out/results.json").bundles
    assert bundle.energy == results.bundles[0].energy
    if find_sources():
        assert bundle.energy.is_measured
    else:
        assert bundle.energy.method == "modelled: raspberry-pi-5"


def test_a_device_that_is_not_known_is_refused_before_measuring(tiny_bundles, tmp_path):
    settings = BenchSettings(**QUICK, power_model="abacus")
    told = []
    with pytest.raises(UserError, match="no device 'abacus'"):
        run_bench([tiny_bundles["onnxruntime-fp32"]], tmp_path / "out", settings, told.append)
    assert told == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"battery_wh": 0.0}, "more than 0 Wh"),
        ({"battery_wh": float("nan")}, "more than 0 Wh"),
        ({"idle_seconds": 0.0}, "idle seconds"),
        ({"idle_seconds": float("inf")}, "idle seconds"),
    ],
)
def test_batteries_and_rests_that_can_not_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        BenchSettings(**changes)


# comparing


def with_energy(results, method, keyframe_joules):
    energy = EnergyResult(method, 2.0, keyframe_joules, keyframe_joules / 30, 9.0)
    bundle = msgspec.structs.replace(results.bundles[0], energy=energy)
    return msgspec.structs.replace(results, bundles=(bundle,))


def compared(before, after):
    return {change.figure: change for change in compare(before, after)}.get("keyframe_joules")


def test_results_from_before_energy_was_measured_are_read(tmp_path):
    stored = json.loads(Path(COMMITTED).read_text("utf-8"))
    for bundle in stored["bundles"]:
        del bundle["energy"]
    (tmp_path / "old.json").write_text(json.dumps(stored))
    assert all(bundle.energy is None for bundle in read_results(tmp_path / "old.json").bundles)


@pytest.mark.parametrize(("joules", "verdict"), [(4.0, "better"), (5.2, "within noise"), (6.0, "worse")])
def test_keyframes_energy_is_compared_beyond_noise(joules, verdict):
    results = read_results(COMMITTED)
    before, after = (with_energy(results, "measured: RAPL", each) for each in (5.0, joules))
    assert compared(before, after).verdict == verdict


@pytest.mark.parametrize("methods", [("measured: RAPL", "measured: battery"), ("modelled: a", "modelled: a")])
def test_energies_of_two_methods_or_a_models_are_not_compared(methods):
    results = read_results(COMMITTED)
    assert compared(*(with_energy(results, method, 5.0) for method in methods)) is None


def test_results_with_and_without_a_model_can_be_compared():
    results = read_results(COMMITTED)
    settings = replace(results.settings, power_model="raspberry-pi-5", battery_wh=50.0)
    assert compare(results, msgspec.structs.replace(results, settings=settings))
