"""Mixed recipes: what a layer matters is measured, and the choices keep to a budget."""

import re

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from outzoom.compress.layers import find_layers
from outzoom.export import Plan, Shapes, build, open_checkpoint, read_recipe
from outzoom.export.reading import load_traced
from outzoom.export.sensitivity import CHOSEN, SENSITIVITY, TRIED, Chosen, ComponentTried, Tried, check_budget
from outzoom.runtime import Painting, UserError, open_bundle, open_manifest

TEXT = """
description = "test"
weights = "float16"
compute = "float32"
min_psnr_db = 1
[mixed]
bits = 3
[[mixed.choices]]
store = { method = "kmeans", bits = 2 }
[[mixed.choices]]
store = { method = "kmeans", bits = 4 }
[[mixed.choices]]
store = { method = "kmeans", bits = 8 }
[calibration]
prompts = ["a town with red roofs at noon"]
keyframes = 1
steps = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the recipe above is, what is built, and the results of stages."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "mine.toml").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def build_mixed(tiny_checkpoint, folder):
    """Builds a bundle of the tiny checkpoint by the recipe above, under a budget: a function that gives the bundle."""

    def build_mixed(budget_mb=None):
        recipe, checkpoint = read_recipe(str(folder / "mine.toml"), budget_mb), open_checkpoint(tiny_checkpoint)
        plan = Plan(checkpoint, ("onnxruntime",), (recipe,), Shapes(((64, 64),)), folder / "out", 2)
        (bundle,) = build(plan)
        return bundle

    return build_mixed


def stage_folder(folder, name):
    """Where the result of the stage of that name is."""
    found = [file.parent for file in folder.glob("out/.cache/*/stage.json") if f'"{name}' in file.read_text()]
    assert len(found) == 1
    return found[0]


def read_mixed(bundle):
    chosen = msgspec.json.decode((bundle.path / CHOSEN).read_bytes(), type=dict[str, dict[str, Chosen]])
    return [layer for component in chosen.values() for layer in component.values()], chosen


def test_each_layer_gets_one_of_the_choices_and_on_average_the_bits(build_mixed, picture, folder):
    bundle = build_mixed()
    layers, chosen = read_mixed(bundle)
    assert set(chosen) == {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
    assert len({layer.rule.store.bits for layer in layers}) > 1
    parameters = 0
    for component, of_component in chosen.items():
        file = stage_folder(folder, f"{component}: try choices") / TRIED
        tried = msgspec.json.decode(file.read_bytes(), type=ComponentTried)
        assert of_component.keys() == tried.layers.keys()
        parameters += sum(layer.parameters for layer in tried.layers.values())
    assert 0.9 * 3 / 8 * parameters < sum(layer.size_bytes for layer in layers) <= 3 / 8 * parameters
    with open_bundle(bundle.path) as zoom:
        keyframes = zoom.keyframes(picture[:64, :64], "a town", 0.5, Painting(steps=2, guidance=1))
        next(keyframes)
        assert next(keyframes).shape == (64, 64, 3)


def test_a_larger_budget_is_used_and_a_bundle_keeps_to_it(build_mixed):
    bits_3 = open_manifest(build_mixed().path).size_bytes
    less, _ = read_mixed(build_mixed())
    more, _ = read_mixed(bundle := build_mixed(1.3 * bits_3 / 1e6))
    assert sum(layer.size_bytes for layer in less) < sum(layer.size_bytes for layer in more)
    assert bits_3 < open_manifest(bundle.path).size_bytes <= 1.3 * bits_3


def test_a_budget_that_can_not_be_met_names_the_smallest_that_can(build_mixed):
    with pytest.raises(
        UserError, match=r"budget of 0\.2 MB can't be met: with the smallest .* it is [\d.]+ MB"
    ) as error:
        build_mixed(0.2)
    smallest = float(re.search(r"it is ([\d.]+) MB", str(error.value))[1])
    layers, _ = read_mixed(build_mixed(smallest))
    of_two_bits = [layer for layer in layers if layer.rule.store.bits == 2]
    assert len(of_two_bits) > 0.7 * len(layers)  # what is named is rounded up to 10 kB
    with pytest.raises(UserError, match="can't be met"):
        build_mixed(smallest - 0.02)


def tried(*size_bytes):
    return ComponentTried("unet", {"a": Tried("Conv", 80, size_bytes, tuple(1.0 for _ in size_bytes))}, 800, 100)


def test_budgets_by_hand():
    both = [tried(30, 40), tried(35, 60)]

    def budget(target="onnxruntime", activations=None, **mixed):
        recipe = read_recipe("mixed")
        recipe = msgspec.structs.replace(recipe, mixed=msgspec.structs.replace(recipe.mixed, **mixed))
        return check_budget(msgspec.structs.replace(recipe, activations=activations), both, target)

    assert budget(bits=4) == 80  # 4 of 8 bits of 160 weights
    with pytest.raises(UserError, match=r"of 2 bits for each weight can't be met: .* it is 3\.25 bits"):
        budget(bits=2)
    assert budget(budget_mb=0.005) == 5000 - 2 * (800 + 100 + 700)
    assert budget(budget_mb=0.0051, activations=read_recipe("int8").activations) == 5100 - 2 * (800 + 200 + 700)
    with pytest.raises(UserError, match=r"it is 0\.01 MB"):  # of 3765 bytes, rounded up
        budget("openvino-cpu", budget_mb=0.003)


def test_a_layers_sensitivity_is_what_the_output_loses_with_it_alone_compressed(
    build_mixed, tiny_checkpoint, folder, tmp_path
):
    build_mixed()
    name, component = "decoder.mid_block.resnets.0.conv1.weight", "vae_decoder"
    traced = stage_folder(folder, f"{component}: export the graph")
    file = stage_folder(folder, f"{component}: try choices") / TRIED
    tried = msgspec.json.decode(file.read_bytes(), type=ComponentTried).layers[name]
    found = msgspec.json.decode((stage_folder(folder, f"{component}: measure the layers") / SENSITIVITY).read_bytes())
    (sample,) = stage_folder(folder, "zoom for calibration").glob(f"{component}-*.npz")

    def output(change):
        model = load_traced(traced, open_checkpoint(tiny_checkpoint), component, read_recipe("fp32"))
        (layer,) = (layer for layer in find_layers(model) if layer.name == name)
        array = layer.value.const_value.numpy() + change
        layer.value.const_value = ir.tensor(array.astype(np.float32), name=layer.value.name)
        ir.save(model, tmp_path / "model.onnx", external_data="weights")
        engine = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        return engine.run(None, dict(np.load(sample)))[0].astype(np.float64)

    # another error of the weight, of no pattern but chance: about as bad for each squared error of it
    change = np.random.default_rng(0).standard_normal((32, 32, 3, 3))
    change *= np.sqrt(tried.squared_errors[tried.probe] / change.size)
    exact = output(0)
    relative = np.square(output(change) - exact).mean() / np.ptp(exact) ** 2
    assert relative / np.square(change).sum() == pytest.approx(found[name], rel=0.6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mixed]\nchoices = [{}]", "length >= 2"),
        ('[[mixed.choices]]\nengine = "int8"\n[[mixed.choices]]\n', "one engine"),
        ('[[mixed.choices]]\nprune = { fraction = 0.5, scores = "wanda" }\n[[mixed.choices]]\n', "not at inputs"),
        ('[[mixed.choices]]\nlayers = ["a"]\n[[mixed.choices]]\n', "for all layers"),
    ],
)
def test_a_mixed_table_that_can_not_be_is_refused(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text('description = "x"\nweights = "float16"\ncompute = "fastest"\nmin_psnr_db = 1\n' + text)
    with pytest.raises(UserError, match=message):
        read_recipe(str(file))


def test_a_budget_for_a_recipe_without_choices_is_refused():
    with pytest.raises(UserError, match="no budget to keep to"):
        read_recipe("fp16", 10.0)
    with pytest.raises(UserError, match="above 0 MB"):
        read_recipe("mixed", -1.0)
