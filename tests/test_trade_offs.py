"""What the report says of quality against its cost, by hand."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outzoom.benchmarks import read_results
from outzoom.benchmarks.memory_chart import memory_charts, phases
from outzoom.benchmarks.results import EnergyResult, MemorySample, Roofs, Stage, Work
from outzoom.benchmarks.roofline import roofline_chart
from outzoom.benchmarks.trade_offs import on_front, trade_off_charts

POINT = st.tuples(st.integers(0, 5), st.integers(0, 5))


@pytest.fixture
def results(committed):
    return read_results(committed / "demo-bench.json")


@pytest.fixture
def colours(results):
    return {bundle.name: "#000000" for bundle in results.bundles}


def test_the_front_is_what_no_other_point_beats():
    assert on_front([1, 2, 3, 3], [30, 20, 40, 35]) == [True, False, True, False]
    assert on_front([1, 1], [30, 30]) == [True, True]
    assert on_front([1, 2], [30, 30]) == [True, False]
    assert on_front([], []) == []


@given(st.lists(POINT, min_size=1, max_size=12))
def test_each_point_off_the_front_is_beaten_by_one_on_it(points):
    best = on_front(*zip(*points, strict=True))
    front = [point for point, is_best in zip(points, best, strict=True) if is_best]
    assert front
    for (cost, quality), is_best in zip(points, best, strict=True):
        beaten = any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in front)
        assert beaten != is_best


def test_each_chart_names_its_front_and_what_is_beaten(results, colours):
    size, *others = trade_off_charts(results.bundles, colours)
    assert [chart.title for chart in (size, *others)][:3] == [
        "Quality and size",
        "Quality and time",
        "Quality and memory",
    ]
    compared = [bundle for bundle in results.bundles if bundle.quality]
    smallest = min(compared, key=lambda bundle: bundle.size_bytes)
    assert f"{smallest.name}: " in size.alt.partition("Beaten")[0]
    for bundle in compared:
        assert bundle.name in size.alt


def test_with_one_compared_bundle_there_is_nothing_to_weigh(results, colours):
    compared = [bundle for bundle in results.bundles if bundle.quality][:1]
    assert trade_off_charts(compared, colours) == []


def test_an_engine_lies_where_its_operations_bytes_and_time_say(results, colours):
    bundle = results.bundles[0]
    unet = msgspec.structs.replace(bundle.components["unet"], work=Work(macs=10**9, moved_bytes=4 * 10**7))
    latency = msgspec.structs.replace(unet.latency, median_ms=20.0)
    components = {"unet": msgspec.structs.replace(unet, latency=latency)}
    one = msgspec.structs.replace(results, bundles=(msgspec.structs.replace(bundle, components=components),))
    chart = roofline_chart(msgspec.structs.replace(one, roofs=Roofs(30.0, {"float32": 0.2})), colours)
    assert chart is not None
    assert f"{bundle.name}: 50.0 operations per byte, 0.100 TOPS" in chart.alt  # 2e9 in 20 ms
    assert "float32, at most" in chart.svg
    assert math.isclose(2e9 / 0.02 / 1e12, 0.1)


def test_without_counted_work_there_is_no_roofline(results, colours):
    components = {name: msgspec.structs.replace(one, work=None) for name, one in results.bundles[0].components.items()}
    bundle = msgspec.structs.replace(results.bundles[0], components=components)
    assert roofline_chart(msgspec.structs.replace(results, bundles=(bundle,)), colours) is None


def test_energy_is_weighed_where_every_bundle_has_it_and_is_said_to_be_modelled(results, colours):
    energy = EnergyResult("modelled: jetson-orin-nano", 4.0, 2.5, 0.1, 9.0)
    bundles = [msgspec.structs.replace(bundle, energy=energy) for bundle in results.bundles]
    chart = trade_off_charts(bundles, colours)[-1]
    assert chart.title == "Quality and energy"
    assert "2.50 J per keyframe, modelled" in chart.alt
    bundles[-1] = msgspec.structs.replace(bundles[-1], energy=None)
    assert "Quality and energy" not in [chart.title for chart in trade_off_charts(bundles, colours)]


def test_memory_is_told_for_each_part_of_a_measurement(results, colours):
    samples = tuple(MemorySample(float(i), (10 + i) * 10**6) for i in range(7))
    names = ("open", "unet, 30 runs", "vae_decoder, 30 runs", "keyframe 1 of 2", "keyframe 2 of 2")
    stages = tuple(Stage(name, float(i)) for i, name in enumerate(names))
    bundle = results.bundles[0]
    memory = msgspec.structs.replace(bundle.memory, trace=samples, stages=stages)
    assert phases(memory) == [("open", 0, 1), ("engines alone", 1, 3), ("zoom", 3, 6)]
    (chart,) = memory_charts([msgspec.structs.replace(bundle, memory=memory)], colours)
    assert "open: 11.0 MB at most; engines alone: 13.0 MB at most; zoom: 16.0 MB at most" in chart.alt
    untraced = msgspec.structs.replace(memory, trace=())
    assert memory_charts([msgspec.structs.replace(bundle, memory=untraced)], colours) == []
