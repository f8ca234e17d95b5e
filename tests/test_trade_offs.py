"""What the report says of quality against its cost, by hand."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outzoom.benchmarks import read_results
from outzoom.benchmarks.results import Roofs, Work
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
