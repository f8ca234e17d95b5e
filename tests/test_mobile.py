"""The target onnxruntime-mobile: .ort files, what a reduced build needs for them, and the usability report."""

import re

import numpy as np
import pytest
from short_recipes import write_recipes

from outzoom.export.parity import tensor_psnr_db
from outzoom.runtime import BundleError, OutzoomError, Painting, UserError, open_bundle
from outzoom.runtime.backends import Loading, backend_for
from outzoom.runtime.backends.onnxruntime_mobile import MOST_BYTES, OPERATORS_NAME
from outzoom.runtime.bundle import COMPONENTS

TARGET = "onnxruntime-mobile"
# Graphs that are optimized otherwise add up in another order; where activations are rounded, some fall the other way.
SAME_DB = {"fp32": 60, "fp16": 60, "kmeans4": 60, "int8": 38, "int4": 38}


@pytest.fixture(scope="module")
def mobile(tiny_checkpoint, tmp_path_factory, build_bundles):
    """Bundles of the tiny checkpoint in several recipes, and those of ONNX Runtime with the model as it is."""
    folder = tmp_path_factory.mktemp("mobile")
    recipes = [*write_recipes(folder), "kmeans4"]
    return build_bundles(tiny_checkpoint, folder / "out", [TARGET, "onnxruntime"], recipes)


def feeds_of(component, seed=2):
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in component.inputs:
        whole = spec.dtype == "int64"
        feeds[spec.name] = rng.integers(0, 600, spec.shape) if whole else rng.standard_normal(spec.shape, np.float32)
    return feeds


@pytest.mark.parametrize("recipe", SAME_DB)
def test_an_ort_file_computes_what_the_model_does(mobile, recipe):
    ours, plain = (open_bundle(mobile[f"{target}-{recipe}"]) for target in (TARGET, "onnxruntime"))
    with ours, plain:
        for name, component in ours.bundle.manifest.components.items():
            assert component.engine == f"{name}/model.ort"
            assert component.packed is None
            feeds = feeds_of(component)
            (found,), (expected,) = (one.inpainting.engine(name).run(feeds).values() for one in (ours, plain))
            assert tensor_psnr_db(expected, found) > SAME_DB[recipe], name


def test_weights_of_few_bits_stay_so_in_the_file(mobile):
    from outzoom.runtime.bundle import open_manifest

    sizes = {
        recipe: open_manifest(mobile[f"{TARGET}-{recipe}"]).component_size_bytes("unet")
        for recipe in ("fp32", "fp16", "kmeans4", "int8")
    }
    assert sizes["fp16"] < 0.75 * sizes["fp32"]  # of this tiny model many weights are so small that they are folded
    assert sizes["kmeans4"] < 0.75 * sizes["fp32"]
    assert sizes["int8"] < 0.5 * sizes["fp32"]


def test_beside_it_is_what_a_reduced_build_needs_and_nothing_of_this_machine(mobile):
    for recipe in ("fp32", "int8", "int4"):
        for name in COMPONENTS:
            text = (mobile[f"{TARGET}-{recipe}"] / name / OPERATORS_NAME).read_text("utf-8")
            domains = {line.split(";")[0] for line in text.splitlines()}
            assert domains <= {"ai.onnx", "com.microsoft"}  # and none for the processor that converted it
            assert "#" not in text
            assert str(mobile[f"{TARGET}-{recipe}"].parent) not in text
    operators = (mobile[f"{TARGET}-fp32"] / "unet" / OPERATORS_NAME).read_text("utf-8")
    assert re.search(r"\bConv\b|FusedConv", operators)
    assert "QLinearConv" in (mobile[f"{TARGET}-int8"] / "unet" / OPERATORS_NAME).read_text("utf-8")
    assert "MatMulNBits" in (mobile[f"{TARGET}-int4"] / "unet" / OPERATORS_NAME).read_text("utf-8")


def test_the_operators_are_what_onnxruntimes_own_tools_read(mobile):
    from onnxruntime.tools.reduced_build_config_parser import parse_config

    file = mobile[f"{TARGET}-fp32"] / "unet" / OPERATORS_NAME
    operators, types = parse_config(str(file), enable_type_reduction=True)
    assert "Conv" in set().union(*operators["ai.onnx"].values())
    assert types is not None


def test_the_build_log_has_the_mobile_usability_report(mobile):
    log = (mobile[f"{TARGET}-fp32"].parent / "build.log").read_text("utf-8")
    for name in COMPONENTS:
        for accelerator in ("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram"):
            said = f"{name}, mobile usability: Model should perform well with {accelerator} as is: (YES|NO|MAYBE)"
            assert re.search(f"{TARGET}-fp32: {said}", log)
    assert "onnxruntime-fp32: unet, mobile usability" not in log


def test_a_bundle_of_several_sizes_is_one_file_that_paints_each(tiny_checkpoint, tmp_path, build_bundles):
    sizes = [(64, 64), (96, 64)]
    path = build_bundles(tiny_checkpoint, tmp_path, [TARGET], ["fp32"], sizes, batch=2)[f"{TARGET}-fp32"]
    for size in sizes:
        with open_bundle(path, size=size) as zoom:
            picture = np.full((size[1], size[0], 3), 90, np.uint8)
            mask = np.ones(picture.shape[:2], bool)
            painted = zoom.inpainting.paint(picture, mask, "a reef", Painting(steps=1, guidance=3))
            assert painted.shape == picture.shape


def test_a_unet_in_segments_is_several_files(tiny_checkpoint, tmp_path, build_bundles):
    bundles = build_bundles(tiny_checkpoint, tmp_path, [TARGET, "onnxruntime"], ["fp32"], unet_segments=2)
    made = []
    for path in bundles.values():
        with open_bundle(path) as zoom:
            picture = np.full((64, 64, 3), 90, np.uint8)
            made.append(zoom.inpainting.paint(picture, np.ones((64, 64), bool), "a reef", Painting(steps=1)))
    assert len(list((bundles[f"{TARGET}-fp32"] / "unet").rglob("*.ort"))) > 1
    assert tensor_psnr_db(made[0], made[1]) > 50


def test_a_damaged_file_is_the_bundles_mistake(mobile, tmp_path):
    whole = (mobile[f"{TARGET}-fp32"] / "text_encoder" / "model.ort").read_bytes()
    for data in (b"", b"no flatbuffer at all", whole[: len(whole) // 2]):
        file = tmp_path / "model.ort"
        file.write_bytes(data)
        with pytest.raises(BundleError, match="can't load"):
            backend_for(TARGET).load(file, Loading())


def test_weights_that_the_format_can_not_hold_are_refused_before_any_work(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with (tmp_path / "model.onnx.data").open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(OutzoomError, match=r"2\.15 GB") as error:
        backend_for(TARGET).compile(tmp_path / "model.onnx", tmp_path / "out")
    assert "--segments" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none_is_an_error_that_names_it(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(OutzoomError, match=r"model\.ort"):
        backend_for(TARGET).compile(tmp_path / "model.onnx", tmp_path / "out")


def test_optimum_can_not_open_such_files(tiny_checkpoint, tmp_path, build_bundles):
    with pytest.raises(UserError, match="optimum"):
        build_bundles(tiny_checkpoint, tmp_path, [TARGET], ["fp32"], batch=2, interop=True)
