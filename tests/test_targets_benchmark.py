"""The benchmark of targets: what was built, what is refused and why, and that a second run goes on from there."""

import json

import msgspec
import pytest

from outzoom.benchmarks.targets import TargetsResult, run
from outzoom.benchmarks.targets_page import targets
from outzoom.runtime.bundle import MANIFEST_NAME

EXACT = """description = "Nearer than the processor's 16 bits."
weights = "float16"
compute = "fastest"
min_psnr_db = 70.0
"""


@pytest.fixture
def build(tiny_checkpoint, stage_cache, tmp_path):
    (tmp_path / "cache").symlink_to(stage_cache)

    def build(targets, recipe):
        run(str(tiny_checkpoint), targets, [recipe], tmp_path, tmp_path / "result.json")
        result = msgspec.json.decode((tmp_path / "result.json").read_bytes(), type=TargetsResult)
        return {entry.target: entry for entry in result.entries}

    return build


def test_each_target_is_built_or_refused_with_the_reason(build):
    entries = build(["openvino-npu", "onnxruntime", "tensorrt"], "fp32")
    assert "16 bits" in entries["openvino-npu"].refused
    assert entries["onnxruntime"].made == "ahead"
    assert entries["onnxruntime"].checked_on is None
    assert entries["tensorrt"].made == "on device"
    assert entries["tensorrt"].checked_on == "onnxruntime"
    for name in ("onnxruntime", "tensorrt"):
        assert list(entries[name].components) == ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
        assert entries[name].cpu_seconds > 0


def test_what_is_known_stands_by_target_and_recipe_in_whatever_order_it_was_tried(tiny_checkpoint, tmp_path):
    for target, recipe in (("openvino-npu", "a8w8"), ("openvino-npu", "fp32"), ("onnxruntime-qnn", "fp32")):
        run(str(tiny_checkpoint), [target], [recipe], tmp_path, tmp_path / "result.json")  # all refused
    result = msgspec.json.decode((tmp_path / "result.json").read_bytes(), type=TargetsResult)
    found = [(entry.target, entry.recipe) for entry in result.entries]
    assert found == [("onnxruntime-qnn", "fp32"), ("openvino-npu", "fp32"), ("openvino-npu", "a8w8")]


def test_the_table_does_not_call_built_what_was_refused(tiny_checkpoint, tmp_path):
    run(str(tiny_checkpoint), ["openvino-npu"], ["fp32"], tmp_path, tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    result["absent"]["openvino-npu"] = "no NPU"
    page = targets(result)
    assert "| `openvino-npu` | on device | refused [1] |" in page
    assert "Built, not run" not in page


def test_the_targets_after_one_that_fails_are_built(build, tmp_path):
    recipe = tmp_path / "exact.toml"
    recipe.write_text(EXACT)
    entries = build(["openvino-cpu", "onnxruntime"], str(recipe))
    if entries["openvino-cpu"].refused is None:
        pytest.skip("the processor computes in 32 bits")
    assert "the recipe asks for 70" in entries["openvino-cpu"].refused
    assert entries["onnxruntime"].refused is None


def test_a_second_run_builds_what_is_missing(build, tmp_path):
    first = build(["onnxruntime"], "fp32")
    (tmp_path / "out" / "onnxruntime-fp32" / MANIFEST_NAME).unlink()
    second = build(["onnxruntime", "openvino-cpu"], "fp32")
    assert second["onnxruntime"] == first["onnxruntime"]
    assert not (tmp_path / "out" / "onnxruntime-fp32" / MANIFEST_NAME).exists()
    assert second["openvino-cpu"].refused is None
