"""Compressed bundles of the demo checkpoint, from the calibration on to the pictures that they paint."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import DEMO, ROOT

from outzoom.benchmarks.quality import psnr_db
from outzoom.export import Plan, Shapes, calibration, open_checkpoint, read_recipe, segments
from outzoom.export.calibration import measure_activations, read_inputs
from outzoom.export.trace import save_skeleton, trace
from outzoom.export.work import MODEL
from outzoom.runtime import Inpainting, Painting, UserError, load_image, open_bundle, open_manifest
from outzoom.runtime.packed import open_packed, unpack

HEADER = 'description = "test"\nweights = "float16"\ncompute = "float32"\nmin_psnr_db = 10\n'
SHORT = '[calibration]\nprompts = ["a town with red roofs at noon"]\nkeyframes = 1\nsteps = 4\n'
RECIPES = {
    "integers": 'activations = { range = "minmax", products = true }\n[[rules]]\nengine = "int8"\n',
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
    [("integers", 28, 0.32), ("four", 28, 0.18), ("shared", 28, 0.19), ("sparse", 16, 0.22), ("narrow", 22, 0.15)],
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


def test_onnx_runtime_computes_the_unet_in_integers(compressed, tmp_path):
    from outzoom.runtime.packed import unpacked

    bundle = open_manifest(compressed["onnxruntime-integers"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    with unpacked(bundle.engine("unet"), bundle.file("unet/packed.safetensors")) as engine:
        onnxruntime.InferenceSession(engine, options, ["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    traced = [node.op_type for node in onnx.load(bundle.engine("unet"), load_external_data=False).graph.node]
    assert operators.count("QLinearConv") >= traced.count("Conv") - 1  # the last makes the output of the graph
    integer = sum(operators.count(name) for name in ("MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul"))
    assert integer > 0.9 * traced.count("MatMul")


def test_openvino_computes_the_unet_in_integers(compressed):
    import openvino

    from outzoom.runtime.packed import unpacked

    bundle = open_manifest(compressed["openvino-cpu-integers"])
    with unpacked(bundle.engine("unet"), bundle.file("unet/packed.safetensors")) as engine:
        compiled = openvino.Core().compile_model(engine, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    convolutions = [
        info["runtimePrecision"].astype(str) for info in ran if info["layerType"].astype(str) == "Convolution"
    ]
    products = [
        info["runtimePrecision"].astype(str) for info in ran if info["layerType"].astype(str) == "FullyConnected"
    ]
    assert len(convolutions) > 30
    assert sum(kind in ("i8", "u8") for kind in convolutions) >= 0.9 * len(convolutions)
    assert sum(kind in ("i8", "u8") for kind in products) >= 0.9 * len(products)


def test_each_run_of_each_component_is_recorded(stage_cache, compressed):
    (folder,) = {path.parent for path in stage_cache.glob("record_trajectories-*/unet-00001.npz")}
    names = sorted(file.name.partition("-")[0] for file in folder.glob("*.npz"))
    # one keyframe of four steps with guidance: the prompt and the empty one, eight UNet calls
    assert names == ["text_encoder"] * 2 + ["unet"] * 8 + ["vae_decoder"] + ["vae_encoder"]
    timesteps = {float(np.load(file)["timestep"][0]) for file in folder.glob("unet-*.npz")}
    assert len(timesteps) == 4


def test_statistics_do_not_depend_on_how_the_graph_is_cut(stage_cache, compressed, tmp_path, monkeypatch):
    (recorded,) = {path.parent for path in stage_cache.glob("record_trajectories-*/unet-00001.npz")}
    checkpoint = open_checkpoint(DEMO)
    recipe = read_recipe(str(compressed["onnxruntime-four"].parent.parent / "four.toml"))
    (tmp_path / "traced").mkdir()
    save_skeleton(trace(checkpoint, "vae_decoder", Shapes(((128, 128),))), tmp_path / "traced" / MODEL)
    found = {}
    for most_bytes in (2**40, 2**20):
        whole = segments.split
        monkeypatch.setattr(segments, "split", lambda model, most=most_bytes, whole=whole: whole(model, most))
        folder = tmp_path / str(most_bytes)
        folder.mkdir()
        arguments = {"checkpoint": checkpoint, "component": "vae_decoder", "recipe": recipe}
        measure_activations(folder, tmp_path / "traced", recorded, **arguments)
        monkeypatch.setattr(segments, "split", whole)
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


def plan_with(tmp_path, text, header=HEADER, **options):
    file = tmp_path / "mine.toml"
    file.write_text(header + text)
    recipes = (read_recipe(str(file)),)
    return Plan(open_checkpoint(DEMO), ("onnxruntime",), recipes, Shapes(((128, 128),)), tmp_path / "out", **options)


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
    (encoder,) = plan_with(tmp_path, table).bundles[0].engines["vae_encoder"].needs[0].needs
    assert "export the graph" in encoder.name


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


def test_the_manifest_names_the_packed_file(compressed):
    manifest = json.loads((compressed["onnxruntime-shared"] / "bundle.json").read_text())
    assert manifest["components"]["unet"]["packed"] == "unet/packed.safetensors"
    assert "unet/packed.safetensors" in manifest["files"]
    assert "unet/model.onnx.data" not in manifest["files"]
