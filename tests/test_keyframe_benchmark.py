"""A keyframe beside other pipelines: what is measured, and how the report tells it."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest

from outzoom.benchmarks.beside import beside, shown_ratio
from outzoom.benchmarks.keyframe_result import read_keyframe_result

COMMAND = [sys.executable, "-m", "outzoom.benchmarks.keyframe"]


def test_ours_paint_in_turn_with_the_steps_that_were_asked_for(tiny_bundles, tmp_path):
    out = tmp_path / "keyframe.json"
    bundles = [str(tiny_bundles[name]) for name in ("onnxruntime-fp32", "openvino-cpu-fp32")]
    asked = ["--presets", "quality", "--rounds", "2", "--steps", "3", "--out", str(out)]
    subprocess.run([*COMMAND, *bundles, *asked], check=True, timeout=300)
    found = read_keyframe_result(out)
    assert list(found.sides) == ["onnxruntime-fp32, quality", "openvino-cpu-fp32, quality"]
    assert found.steps == 3
    assert found.reference is None
    assert found.size == (64, 64)
    for side in found.sides.values():
        assert len(side.keyframe_seconds) == 2
        assert min(side.keyframe_seconds) > 0
        assert side.peak_rss_bytes > 1e7
        assert side.packages == {}


def test_a_rival_that_is_not_known_is_refused(tmp_path):
    done = subprocess.run(
        [*COMMAND, str(tmp_path), "--rival", "someone", "python", "model"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no rival is called someone; there are openvino.genai, diffusers" in done.stderr


@pytest.fixture
def result(committed):
    return read_keyframe_result(committed / "demo-keyframe.json")


def test_the_quickest_side_is_first_and_the_reference_has_no_ratio(result):
    rows = beside(result).rows
    medians = [np.median(result.sides[row.name].keyframe_seconds) for row in rows]
    assert medians == sorted(medians)
    assert {row.name for row in rows if row.ratio == "reference"} == {result.reference}
    assert all(bool(row.versions) == bool(result.sides[row.name].packages) for row in rows)


def test_sides_without_a_rival_have_no_ratios(result):
    sides = {name: msgspec.structs.replace(side, ratio={}) for name, side in result.sides.items()}
    rows = beside(msgspec.structs.replace(result, sides=sides, reference=None)).rows
    assert {row.ratio for row in rows} == {""}


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        ({"median": 0.5, "p10": 0.4, "p90": 0.6}, "0.50 (0.40 to 0.60, p10 to p90)"),
        ({"median": 0.5, "p10": 0.4, "p90": 0.6, "low": 0.45, "high": 0.55}, "0.50 (0.45 to 0.55, 95% interval)"),
    ],
)
def test_a_ratio_is_told_with_its_interval_or_its_spread(ratio, shown):
    assert shown_ratio(ratio) == shown
