"""Compressed bundles of the demo checkpoint, from the calibration on to the pictures that they paint."""

import json
from functools import partial

import numpy as np
import onnx
import openvino
import pytest
from conftest import DEMO, ROOT

from outzoom.benchmarks.executed import executed
from outzoom.benchmarks.measure import random_feeds
from outzoom.benchmarks.quality import psnr_db
from outzoom.export import Plan, Shapes, calibration, open_checkpoint, read_recipe, segments
from outzoom.export.calibration import measure_activations, read_inputs
from outzoom.export.reading import MODEL
from outzoom.export.trace import save_skeleton, trace
from outzoom.runtime import Inpainting, Painting, UserError, load_image, open_bundle, open_manifest
from outzoom.runtime.engines import engine_files
from outzoom.runtime.packed import open_packed, unpack
from outzoom.runtime.shapes import dimensions

HEADER = 'description = "test"\nweights = "float16"\ncompute = "float32"\nmin_psnr_db = 10\n'
SHORT = '[calibration]\nprompts = ["a town with red roofs at noon"]\nkeyframes = 1\nsteps = 2\n'
UNET_CALLS = 4  # one keyframe of two steps with guidance: the prompt and the empty one
RECIPES = {
    "dynamic": 'activations = { range = "dynamic" }\n[[rules]]\nengine = "int8"\n',
    "symmetric": 'activations = { range = "mse", symmetric = true, products = true }\n[[rules]]\nengine = "int8"\n',
    "integers": 'activations = { range = "minmax", products = true }\nsmooth = { components = ["unet"] }\n'
    '[[rules]]\nengine = "int8"\n',
    "four": '[[rules]]\noperators = ["MatMul"]\nstore = { method = "int4", rounding = "gptq" }\nengine = "int4"\n'
    '[[rules]]\nstore = { method = "int4", rounding = "gptq" }\n',
    "shared": '[[rules]]\nprune = { fraction = 0.2 }\nstore = { method = "kmeans", bits = 5 }\n',
    "sparse": '[[rules]]\nsparsify = { n = 2, m = 4, method = "sparsegpt" }\nengine = "int8"\n',
    # smaller layers, whose activations are rounded and whose weights are stored by what was measured of the wide ones
    "narrow": 'activations = { range = "minmax" }\n[[structured]]\nkind = "channels"\nfraction = 0.25\n'
    'components = ["unet", "vae_decoder"]\n[[structured]]\nkind = "neurons"\nfraction = 0.5\n'
    '[[structured]]\nkind = "heads"\nfraction = 0.25\n'
    '[[rules]]\nstore = { method = "int4", rounding = "gptq" }\nengine = "int8"\n',
}
TARGETS = ["onnxruntime", "openvino-cpu"]
SIDES = dimensions((128, 128), 8)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, build_bundles):
    """Bundles of the demo checkpoint with the recipes above, calibrated shortly, for both targets; by name."""
    folder = tmp_path_factory.mktemp("compressed")
    for name, rules in RECIPES.items():
        (folder / f"{name}.toml").write_text(HEADER + rules + SHORT)
    names = ["fp32", *(str(folder / f"{name}.toml") for name in RECIPES)]
    return build_bundles(DEMO, folder / "out", TARGETS, names)


def keyframe(bundle, picture):
    with open_bundle(bundle) as zoom:
        keyframes = zoom.keyframes(picture, "a green meadow with red flowers", 0.5, Painting(steps=4, guidance=1))
        next(keyframes)
        return next(keyframes)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("recipe", "least_db", "most_size"),
    # from what the shipped recipes reach, less a margin for the short calibration; of the size in float32
    [
        ("dynamic", 28, 0.32),
        ("symmetric", 26, 0.32),
        ("integers", 28, 0.32),
        ("four", 28, 0.18),
        ("shared", 28, 0.19),
        ("sparse", 16, 0.22),
        ("narrow", 22, 0.15),
    ],
)
def test_a_compressed_bundle_is_small_and_paints_nearly_the_same(
    compressed, picture, target, recipe, least_db, most_size
):
    exact, small = compressed[f"{target}-fp32"], compressed[f"{target}-{recipe}"]
    assert least_db < psnr_db(keyframe(exact, picture), keyframe(small, picture)) < 60
    assert open_manifest(small).size_bytes < most_size * open_manifest(exact).size_bytes


@pytest.mark.parametrize("target", TARGETS)
def test_packed_weights_are_in_the_bundle_in_place_of_the_engines_own(compressed, target, tmp_path):
    bundle = open_manifest(compressed[f"{target}-shared"])
    component = bundle.manifest.components["unet"]
    folder = bundle.path / "unet"
    packed = open_packed(bundle.file(component.packed))
    assert not (folder / packed.packing.weights_file).exists()
    assert len(packed.packing.tensors) > 100
    unpack(packed, tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size > 3 * bundle.file(component.packed).stat().st_size


def test_nothing_is_left_behind_when_a_bundle_is_opened(compressed, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inpainting = Inpainting(open_manifest(compressed["onnxruntime-shared"]))
    inpainting.engine("vae_decoder")
    assert list(tmp_path.iterdir()) == []
    inpainting.close()


def unet_of(bundle):
    """What its engine computes in, and how many products it has by kind."""
    inpainting = Inpainting(open_manifest(bundle))
    found = executed(inpainting, "unet", random_feeds(inpainting, "unet"))
    return found, {kind: sum(counts.values()) for kind, counts in found.counts.items()}


def test_onnx_runtime_computes_the_unet_in_integers(compressed):
    found, totals = unet_of(compressed["onnxruntime-integers"])
    assert found.counts["Conv"]["int8"] == totals["Conv"] - 1  # the last makes the output of the graph
    assert found.counts["attention"] == {"int8": totals["attention"]}
    # products of one row, of the time embedding, stay in float: it fuses them to a Gemm
    assert found.counts["MatMul"] == {"int8": 84, "float32": 13}
    assert "time_embedding.linear_1.weight: float32, not int8" in found.unmet
    assert len(found.unmet) == 14


def test_openvino_computes_the_unet_in_integers(compressed):
    found, totals = unet_of(compressed["openvino-cpu-integers"])
    assert found.counts["Conv"] == {"int8": totals["Conv"]}
    assert found.counts["MatMul"] == {"int8": totals["MatMul"]}
    assert found.counts["attention"] == {"int8": totals["attention"]}
    assert found.unmet == ()


def test_no_convolution_of_openvino_has_a_zero_point_for_which_to_add_up_its_weights(compressed):
    zero_points = {"Convolution": set(), "MatMul": set()}
    with engine_files(open_manifest(compressed["openvino-cpu-integers"]), "unet").complete() as engine:
        for node in openvino.Core().read_model(engine).get_ops():
            kind = node.get_type_name()
            if kind in zero_points and list(node.input_value(1).shape)[2:] != [1, 1]:
                difference = node.input_value(0).get_node().input_value(0).get_node()  # that is multiplied by the scale
                zero_points[kind].add(int(difference.input_value(1).get_node().input_value(0).get_node().data))
    assert zero_points["Convolution"] == {0}
    assert len(zero_points["MatMul"]) > 1


def test_onnx_runtime_multiplies_dynamically_in_integers(compressed):
    found, totals = unet_of(compressed["onnxruntime-dynamic"])
    assert found.counts["MatMul"] == {"int8": 84, "float32": 13}
    assert found.counts["Conv"] == {"float32": totals["Conv"]}
    assert found.unmet == ()
    log = (compressed["onnxruntime-dynamic"].parent / "build.log").read_text()
    assert "conv_in.weight computes in float: a Conv does not take ranges that change" in log


def test_symmetric_codes_compute_in_integers_wherever_others_do(compressed):
    symmetric, _ = unet_of(compressed["onnxruntime-symmetric"])
    asymmetric, _ = unet_of(compressed["onnxruntime-integers"])
    assert symmetric == asymmetric
    symmetric, totals = unet_of(compressed["openvino-cpu-symmetric"])
    assert symmetric.counts["Conv"] == {"int8": totals["Conv"]}
    assert symmetric.counts["MatMul"] == {"int8": totals["MatMul"]}


@pytest.mark.parametrize("target", TARGETS)
def test_no_product_of_the_unet_is_lost_when_an_engine_renames_it(compressed, target):
    for recipe in ("fp32", "four", "shared"):
        found, totals = unet_of(compressed[f"{target}-{recipe}"])
        assert not any("unknown" in counts for counts in found.counts.values())
        assert totals == {"Conv": 36, "MatMul": 97, "attention": 28}
        assert found.sparse_layers == 0


def recorded_of_demo(stage_cache):
    """The folder of the demo model's trajectories; other tests may have recorded other ones, or the tiny model's."""
    files = stage_cache.glob("record_trajectories-*/unet-00001.npz")
    of_demo = [file.parent for file in files if np.load(file)["sample"].shape[-1] == 32]
    return next(folder for folder in of_demo if len(list(folder.glob("unet-*.npz"))) == UNET_CALLS)


def test_each_run_of_each_component_is_recorded(stage_cache, compressed):
    folder = recorded_of_demo(stage_cache)
    names = sorted(file.name.partition("-")[0] for file in folder.glob("*.npz"))
    assert names == ["text_encoder"] * 2 + ["unet"] * UNET_CALLS + ["vae_decoder"] + ["vae_encoder"]
    timesteps = {float(np.load(file)["timestep"][0]) for file in folder.glob("unet-*.npz")}
    assert len(timesteps) == 2


def split_into(most_bytes, model, more_bytes, whole=segments.split):
    """The segments of a model, of another size than the usual."""
    return whole(model, most_bytes, more_bytes)


def test_statistics_do_not_depend_on_how_the_graph_is_cut(stage_cache, compressed, tmp_path, monkeypatch):
    recorded = recorded_of_demo(stage_cache)
    checkpoint = open_checkpoint(DEMO)
    recipe = read_recipe(str(compressed["onnxruntime-four"].parent.parent / "four.toml"))
    (tmp_path / "traced").mkdir()
    save_skeleton(trace(checkpoint, "vae_decoder", Shapes(((128, 128),))), tmp_path / "traced" / MODEL)
    found = {}
    for most_bytes in (2**40, 2**20):
        monkeypatch.setattr(segments, "split", partial(split_into, most_bytes))
        folder = tmp_path / str(most_bytes)
        folder.mkdir()
        arguments = {"checkpoint": checkpoint, "component": "vae_decoder", "recipe": recipe, "sides": SIDES}
        measure_activations(folder, tmp_path / "traced", recorded, **arguments)
        found[most_bytes] = read_inputs(folder)
    one, many = found.values()
    assert one.statistics.keys() == many.statistics.keys()
    for name, statistics in one.statistics.items():
        other = many.statistics[name]
        assert statistics.counts.sum() == other.counts.sum()
        assert np.allclose(statistics.rms, other.rms, rtol=1e-4)  # engines may add up in another order
    files = sorted(file.name for file in one.covariances.iterdir())
    assert files == sorted(file.name for file in many.covariances.iterdir())
    for name in files:
        a, b = np.load(one.covariances / name), np.load(many.covariances / name)
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4 * abs(a).max())


def plan_with(tmp_path, text, header=HEADER, targets=("onnxruntime",), **options):
    file = tmp_path / "mine.toml"
    file.write_text(header + text)
    recipes = (read_recipe(str(file)),)
    return Plan(open_checkpoint(DEMO), targets, recipes, Shapes(((128, 128),)), tmp_path / "out", **options)


def test_a_pattern_that_matches_no_layer_stops_the_build_before_it_begins(tmp_path):
    with pytest.raises(UserError, match=r"rule 2 .*no layer of unet is called '\*\.attn3\.\*'") as error:
        plan_with(tmp_path, '[[rules]]\nlayers = ["*"]\n[[rules]]\ncomponents = ["unet"]\nlayers = ["*.attn3.*"]\n')
    assert "layers are called like" in error.value.hint


def test_patterns_are_those_of_the_checkpoints_names(tmp_path):
    assert plan_with(tmp_path, '[[rules]]\ncomponents = ["text_encoder"]\nlayers = ["encoder.layers.0.*"]\n')
    assert plan_with(tmp_path, '[[rules]]\ncomponents = ["vae_decoder"]\nlayers = ["decoder.conv_in.weight"]\n')


def test_a_pattern_that_matches_no_block_of_its_kind_stops_the_build_before_it_begins(tmp_path):
    heads = '[[structured]]\nkind = "heads"\nfraction = 0.25\ncomponents = ["unet"]\n'
    with pytest.raises(UserError, match=r"structured 2 .*no block with heads of unet is called 'mid_block'") as error:
        plan_with(tmp_path, heads + heads + 'blocks = ["mid_block"]\n')
    assert "to_out.0.weight'" in error.value.hint
    with pytest.raises(UserError, match=r"structured 1 .*vae_decoder has no neurons that can go"):
        plan_with(tmp_path, heads.replace("heads", "neurons").replace("unet", "vae_decoder"))
    assert plan_with(tmp_path, heads + 'blocks = ["mid_block.*"]\n')


def test_another_fraction_of_what_goes_measures_nothing_anew(tmp_path):
    table = '[[structured]]\nkind = "neurons"\nfraction = 0.25\n'
    first, second = (
        plan_with(tmp_path, text).bundles[0].engines["unet"].needs[0]
        for text in (table, table.replace("0.25", "0.5") + "correct = false\n")
    )
    assert first.key != second.key
    assert first.needs[1].key == second.needs[1].key


def test_the_scales_that_a_target_asks_for_measure_nothing_anew(tmp_path):
    gptq = '[[rules]]\noperators = ["MatMul"]\nstore = { method = "int4", rounding = "gptq" }\nengine = "int4"\n'
    plan = plan_with(tmp_path, gptq, targets=("onnxruntime", "tensorrt"))
    first, second = (bundle.engines["unet"].needs[0] for bundle in plan.bundles)
    assert first.key != second.key
    assert first.needs[1].key == second.needs[1].key


def test_narrow_layers_are_smaller_in_the_engine_and_counted_in_the_manifest(compressed):
    exact, small = (open_manifest(compressed[f"onnxruntime-{name}"]) for name in ("fp32", "narrow"))
    before, after = (bundle.manifest.components["unet"].parameters for bundle in (exact, small))
    assert 0.7 < after / before < 0.8
    graph = onnx.load(small.engine("unet"), load_external_data=False).graph
    groups = [attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "num_groups"]
    assert groups.count(24) == 11  # of 32; the normalizations that no block has between its convolutions keep theirs
    assert (
        "decoder.mid_block.attentions.0.to_out.0.weight keeps its heads: of 1 to choose from"
        in (compressed["onnxruntime-narrow"].parent / "build.log").read_text()
    )


def test_a_missing_calibration_picture_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png") as error:
        plan_with(tmp_path, '[calibration]\npictures = ["gone.png"]\n')
    assert "demo model's own picture" in error.value.hint


def test_what_changes_no_number_measures_nothing_anew(tmp_path):
    """The costly stages are made once for recipes that differ in least parity or in where their pictures lie."""
    rules = '[[rules]]\nprune = { fraction = 0.5, scores = "wanda" }\n[calibration]\npictures = ["mine.png"]\n'
    keys = []
    for folder, least in (("a", 10), ("b", 20)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.png").write_bytes((DEMO / "picture.png").read_bytes())
        engine = plan_with(tmp_path / folder, rules, HEADER.replace("= 10", f"= {least}")).bundles[0].engines["unet"]
        keys.append((engine.key, engine.needs[0].key, engine.needs[0].needs[1].key))
    assert keys[0][1:] == keys[1][1:]
    assert keys[0][0] != keys[1][0]  # the parity is checked again
    (tmp_path / "a" / "mine.png").write_bytes((ROOT / "docs" / "zoom.png").read_bytes())
    engine = plan_with(tmp_path / "a", rules).bundles[0].engines["unet"]
    assert engine.needs[0].needs[1].key != keys[0][2]  # another picture


def test_a_calibration_that_can_not_run_is_refused_before_the_build(tmp_path):
    rules = '[[rules]]\nprune = { fraction = 0.5, scores = "wanda" }\n[calibration]\n'
    with pytest.raises(UserError, match="keyframes"):
        plan_with(tmp_path, rules + "keyframes = 101\n")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"bad\.png"):
        plan_with(tmp_path, rules + 'pictures = ["bad.png"]\n')


def test_ranges_by_timestep_are_for_targets_that_can_compute_with_them(tmp_path):
    text = 'activations = { timestep_groups = 2 }\n[[rules]]\nengine = "int8"\n'
    assert plan_with(tmp_path, text)
    with pytest.raises(UserError, match="2 groups of timesteps, which openvino-cpu computes in float"):
        plan_with(tmp_path, text, targets=("onnxruntime", "openvino-cpu"))
    with pytest.raises(UserError, match="takes the timestep out of the UNet"):
        plan_with(tmp_path, text, hoist=True)


def test_samples_are_divided_by_their_timesteps(tmp_path):
    files = []
    for number, timestep in enumerate((900, 500, 100, 900, 300)):
        files.append(tmp_path / f"unet-{number}.npz")
        np.savez(files[-1], timestep=np.array([timestep], np.float32))
    boundaries, groups = calibration._timestep_groups(files, 2)
    assert boundaries == [400]
    assert [groups[file.name] for file in files] == [1, 1, 0, 1, 0]
    assert calibration._timestep_groups(files, 9)[0] == [200, 400, 700]  # no more than there are timesteps
    assert calibration._timestep_groups(files, 1)[0] == []


def test_a_hoisted_unet_does_not_round_the_products_of_attention(tmp_path):
    with pytest.raises(UserError, match="products"):
        plan_with(tmp_path, 'activations = { products = true }\n[[rules]]\nengine = "int8"\n', hoist=True)


def test_pictures_of_the_calibration_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "mine.png").write_bytes((DEMO / "picture.png").read_bytes())
    plan = plan_with(tmp_path, '[calibration]\npictures = ["mine.png"]\n')
    (picture,) = calibration.calibration_pictures(plan.recipes[0])
    assert np.array_equal(load_image(picture), load_image(DEMO / "picture.png"))


def test_the_build_log_names_layers_that_are_left_or_not_looked_at(compressed):
    log = (compressed["onnxruntime-four"].parent / "build.log").read_text()
    assert "embeddings.token_embedding.weight is compressed without a look at its inputs" in log


def test_the_build_log_names_layers_whose_inputs_are_not_smoothed(compressed):
    log = (compressed["onnxruntime-integers"].parent / "build.log").read_text()
    assert "proj_out.weight is not smoothed: its input is a sum of activations, which have other uses" in log
    assert "fc2.weight is not smoothed" not in log  # it is for the UNet


def test_smoothing_is_measured_twice_and_shares_the_first_with_a_recipe_that_does_not(tmp_path):
    rules = 'activations = {}\n[[rules]]\nengine = "int8"\n'
    smooth = 'smooth = { alpha = 0.3, components = ["unet"] }\n'
    plain, smoothed = (plan_with(tmp_path, text + rules).bundles[0].engines for text in ("", smooth))
    for component in ("text_encoder", "vae_encoder", "vae_decoder"):
        assert plain[component].key == smoothed[component].key
    plain_onnx, smoothed_onnx = plain["unet"].needs[0], smoothed["unet"].needs[0]
    _, measured = plain_onnx.needs
    _, again, first = smoothed_onnx.needs
    assert first.key == measured.key
    assert first in again.needs
    other = plan_with(tmp_path, smooth.replace("0.3", "0.5") + rules).bundles[0].engines["unet"]
    assert other.needs[0].key != smoothed_onnx.key


def test_a_pattern_of_layers_to_smooth_that_matches_none_stops_the_build(tmp_path):
    with pytest.raises(UserError, match=r"smooth of the recipe 'mine': no layer of unet is called '\*\.attn3\.\*'"):
        plan_with(tmp_path, 'activations = {}\nsmooth = { components = ["unet"], layers = ["*.attn3.*"] }\n')


def test_the_manifest_names_the_packed_file(compressed):
    manifest = json.loads((compressed["onnxruntime-shared"] / "bundle.json").read_text())
    assert manifest["components"]["unet"]["packed"] == "unet/packed.safetensors"
    assert "unet/packed.safetensors" in manifest["files"]
    assert "unet/model.onnx.data" not in manifest["files"]
