"""Engines are kept as they are opened, and made again where they can't be kept or are not what they were."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from outzoom.benchmarks import opening
from outzoom.runtime import Bundle, Painting, open_bundle, open_manifest
from outzoom.runtime.bundle import COMPONENTS
from outzoom.runtime.cache import CacheWarning, cache_folder, engine_cache


@pytest.fixture(scope="module")
def packed_bundles(tiny_checkpoint, tmp_path_factory, build_bundles):
    out = tmp_path_factory.mktemp("packed-bundles")
    return build_bundles(tiny_checkpoint, out, ["onnxruntime", "openvino-cpu"], ["kmeans4"])


def painted(bundle, cache):
    with open_bundle(bundle, cache=cache) as zoom:
        picture = np.random.default_rng(0).integers(0, 256, (*zoom.size[::-1], 3), np.uint8)
        keyframes = zoom.keyframes(picture, "a reef", 0.5, Painting(steps=1))
        next(keyframes)
        return next(keyframes)


def files_in(folder):
    return {file.relative_to(folder): file.stat().st_mtime_ns for file in Path(folder).rglob("*") if file.is_file()}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino-cpu"])
def test_what_is_kept_is_opened_the_next_time_and_paints_the_same(packed_bundles, tmp_path, target):
    bundle = packed_bundles[f"{target}-kmeans4"]
    first = painted(bundle, tmp_path / "kept")
    kept = files_in(tmp_path / "kept")
    assert any("weights" in file.parts for file in kept)
    assert np.array_equal(painted(bundle, tmp_path / "kept"), first)
    assert files_in(tmp_path / "kept") == kept
    assert np.array_equal(painted(bundle, None), first)


def test_openvino_keeps_what_it_compiled(packed_bundles, tmp_path):
    painted(packed_bundles["openvino-cpu-kmeans4"], tmp_path / "kept")
    blobs = list((tmp_path / "kept").rglob("*.blob"))
    assert len(blobs) == 4  # text encoder, UNet, both of the VAE


def test_another_bundle_is_kept_apart(packed_bundles, tmp_path, tiny_checkpoint, build_bundles):
    painted(packed_bundles["onnxruntime-kmeans4"], tmp_path / "kept")
    before = files_in(tmp_path / "kept")
    copy = shutil.copytree(packed_bundles["onnxruntime-kmeans4"], tmp_path / "elsewhere")
    painted(copy, tmp_path / "kept")
    assert files_in(tmp_path / "kept") == before  # the same contents in another place
    painted(packed_bundles["openvino-cpu-kmeans4"], tmp_path / "kept")
    assert files_in(tmp_path / "kept").keys() > before.keys()


def test_a_cache_that_can_not_be_written_is_warned_of_and_done_without(packed_bundles, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.warns(CacheWarning, match="can't be kept"):
        painted(packed_bundles["onnxruntime-kmeans4"], tmp_path / "kept")


def test_the_variable_names_the_folder_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTZOOM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("OUTZOOM_CACHE", "")
    assert cache_folder() is None
    monkeypatch.delenv("OUTZOOM_CACHE")
    assert cache_folder().name == "engines"


def test_other_weights_under_the_same_graph_have_a_place_of_their_own(packed_bundles, tmp_path):
    bundle = open_manifest(packed_bundles["onnxruntime-kmeans4"])
    engine = bundle.engine("unet")
    (weights,) = [name for name in bundle.manifest.files if name.startswith("unet/") and name.endswith(".safetensors")]
    other = msgspec.structs.replace(bundle.manifest.files[weights], sha256="0" * 64)
    manifest = msgspec.structs.replace(bundle.manifest, files={**bundle.manifest.files, weights: other})
    places = [engine_cache(tmp_path, one, engine, "1.0") for one in (bundle, Bundle(bundle.path, manifest), bundle)]
    assert places[0] == places[2] != places[1]
    assert engine_cache(tmp_path, bundle, engine, "1.1") != places[0]


def test_what_opening_takes_is_measured_cold_and_warm(tiny_bundles, tmp_path):
    opening.run([tiny_bundles["openvino-cpu-fp32"], tiny_bundles["onnxruntime-fp32"]], 2, tmp_path / "opening.json")
    found = msgspec.json.decode((tmp_path / "opening.json").read_bytes(), type=opening.OpeningResult)
    openvino, onnxruntime = found.bundles
    assert [one.name for one in found.bundles] == ["openvino-cpu-fp32", "onnxruntime-fp32"]
    assert set(openvino.components) == set(COMPONENTS)
    assert all(len(one.cold_seconds) == len(one.warm_seconds) == 2 for one in openvino.components.values())
    assert all(one.kept_bytes > 0 for one in openvino.components.values())
    assert all(one.kept_bytes == 0 for one in onnxruntime.components.values())
    assert openvino.size_bytes == open_manifest(tiny_bundles["openvino-cpu-fp32"]).size_bytes
