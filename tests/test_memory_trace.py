"""Resident memory over time, beside stages."""

import json
import time

import numpy as np

from outzoom.benchmarks import BenchSettings, read_results
from outzoom.benchmarks.measure import measure
from outzoom.benchmarks.memory_trace import MemoryTrace
from outzoom.benchmarks.settings import from_json, to_json


def test_memory_that_is_taken_is_seen_in_its_stage():
    heard = []
    with MemoryTrace(time.monotonic(), interval_seconds=0.01) as trace:
        report = trace.hearing(heard.append)
        report("before")
        time.sleep(0.3)
        report("with ballast")
        ballast = np.ones(64 * 2**20, np.uint8)
        time.sleep(0.3)
        del ballast
    before, after = trace.stages
    assert heard == [before.name, after.name] == ["before", "with ballast"]
    early, late = (
        max(s.rss_bytes for s in trace.samples if is_in(s.seconds))
        for is_in in (lambda t: t < after.from_seconds, lambda t: t > after.from_seconds)
    )
    assert late - early > 50 * 2**20
    times = [sample.seconds for sample in trace.samples]
    assert times == sorted(times)
    assert before.from_seconds <= after.from_seconds <= times[-1]


def test_a_long_trace_is_thinned_out_and_stays_even():
    with MemoryTrace(time.monotonic(), interval_seconds=0.002, limit=40) as trace:
        time.sleep(1.0)
    times = [sample.seconds for sample in trace.samples]
    assert 10 < len(times) < 40
    gaps = np.diff(times)
    assert np.median(gaps) > 0.01
    assert times[0] < 0.2
    assert times[-1] > 0.7


def test_a_trace_ends_with_its_context_also_after_an_error():
    trace = MemoryTrace(time.monotonic(), interval_seconds=0.01)
    try:
        with trace:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    count = len(trace.samples)
    time.sleep(0.1)
    assert len(trace.samples) == count >= 1


def test_a_bundles_memory_is_told_over_time_and_in_every_stage(tiny_bundles):
    settings = BenchSettings(seconds=0.3, keyframe_every=4, steps=2, runs=3, warm_ups=1)
    told = []
    result = measure(tiny_bundles["onnxruntime-fp32"], settings, time.monotonic(), None, told.append)
    memory = result.memory
    assert [stage.name for stage in memory.stages] == told[:-1]  # less what is done after the zoom
    assert max(sample.rss_bytes for sample in memory.trace) <= 1.01 * memory.peak_rss_bytes
    assert memory.trace[0].seconds <= memory.stages[1].from_seconds
    assert from_json(to_json(result), type(result)) == result


def test_results_from_before_memory_was_traced_are_read(tmp_path, committed):
    stored = json.loads((committed / "demo-bench.json").read_text("utf-8"))
    for bundle in stored["bundles"]:
        del bundle["memory"]["trace"], bundle["memory"]["stages"]
    (tmp_path / "old.json").write_text(json.dumps(stored))
    results = read_results(tmp_path / "old.json")
    assert all(bundle.memory.trace == bundle.memory.stages == () for bundle in results.bundles)
