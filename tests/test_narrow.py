"""Narrowing blocks of graphs as the exporter makes them: what goes, what stays, and what is left alone."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from outzoom.compress.blocks import UnfitError, find_block
from outzoom.compress.inputs import Inputs, channel_covariance_file, channel_rows, covariance_file
from outzoom.compress.layers import find_layers
from outzoom.compress.narrow import narrow
from outzoom.compress.recipe import Recipe, Structured
from outzoom.compress.statistics import TensorStatistics
from outzoom.export import open_checkpoint
from outzoom.export.checkpoint import PART_OF
from outzoom.export.hoist import hoist
from outzoom.export.trace import load_skeleton
from outzoom.runtime import UserError
from outzoom.runtime.bundle import HOISTED_INPUTS

CLOSED = ()
OPEN = (((64, 64), (128, 64)), 2)  # several sizes, and a batch that is open, too
KINDS = ("channels", "neurons", "heads")
SIDES = {"batch": 2, "4*rows": 8, "4*columns": 16, "latent_height": 8, "latent_width": 16, "height": 64, "width": 128}
# kept and dropped products are added up in another order: of float32, through a dozen layers
SAME = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def load(tiny_checkpoint, tiny_skeleton):
    """The graph of a component of the tiny checkpoint with its weights."""

    def load(component, *shapes):
        return load_skeleton(
            tiny_skeleton(component, *shapes), open_checkpoint(tiny_checkpoint).weights(PART_OF[component])
        )

    return load


@pytest.fixture
def measured(tmp_path):
    """Statistics in which every channel of every layer is alike and no two go together."""

    def measured(model):
        for layer in find_layers(model):
            channels = layer.matrix_shape[-1]
            np.save(channel_covariance_file(tmp_path, layer.name), np.eye(channels, dtype=np.float32))
        return Inputs({}, tmp_path)

    return measured


def recipe(*kinds, fraction=0.5, **options):
    entries = tuple(Structured(kind, fraction, **options) for kind in kinds)
    return Recipe("mine", "test", "float32", "float32", 0, structured=entries)


def feeds(model, seed=0):
    rng, made = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        shape = [side if isinstance(side, int) else SIDES[str(side.value)] for side in value.shape]
        kind = value.dtype.numpy()
        made[value.name] = rng.integers(0, 600, shape) if kind == np.int64 else rng.standard_normal(shape).astype(kind)
    return made


def run(model, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    made = session.run(None, {name: array for name, array in given.items() if name in wanted})
    return dict(zip(outputs, made, strict=True))


def consumers(model, kind):
    return [layer for layer in find_layers(model) if Structured(kind, 0.5).is_kind(layer.name)]


def let_die(model, kind, rng):
    """Set to zero what half of the units of each block of a kind are multiplied by; those that live, by block."""
    living = {}
    for layer in consumers(model, kind):
        block = find_block(layer, kind)
        alive = np.sort(rng.permutation(block.units)[block.units // 2 :])
        matrix = layer.matrix().reshape(layer.matrix_shape[0], -1, block.units, block.channels // block.units)
        matrix[:, :, np.setdiff1d(np.arange(block.units), alive)] = 0
        layer.value.const_value = ir.tensor(layer.tensor(matrix), name=layer.value.name)
        living[layer.name] = alive
    return living


def elements(model):
    return sum(value.const_value.size for value in model.graph.initializers.values())


CASES = [
    ("unet", "channels"), ("unet", "neurons"), ("unet", "heads"), ("text_encoder", "neurons"),
    ("text_encoder", "heads"), ("vae_encoder", "channels"), ("vae_decoder", "channels"),
]  # fmt: skip


@pytest.mark.parametrize("shapes", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize(("component", "kind"), CASES)
def test_what_is_dead_goes_and_the_outputs_stay(load, measured, component, kind, shapes):
    model = load(component, *shapes)
    living = let_die(model, kind, np.random.default_rng(3))
    assert living
    small, inputs, left = narrow(model, component, recipe(kind), measured(model))
    assert left == []
    assert elements(small) < 0.97 * elements(model)
    for layer in consumers(model, kind):
        alive, width = living[layer.name], layer.matrix_shape[-1] // find_block(layer, kind).units
        assert inputs.kept[layer.name].tolist() == [u * width + i for u in alive for i in range(width)]
    given = feeds(model)
    for made, wanted in zip(run(small, given).values(), run(model, given).values(), strict=True):
        assert np.ptp(wanted) > 0.1
        assert np.allclose(made, wanted, **SAME)


def test_the_weights_around_a_block_lose_the_same_channels(load, measured):
    model = load("unet")
    small, inputs, _ = narrow(model, "unet", recipe("channels", correct=False), measured(model))
    weights, kept = small.graph.initializers, inputs.kept["mid_block.resnets.0.conv2.weight"]
    assert len(kept) == 32
    for name, axis in (
        ("conv1.weight", 0), ("conv1.bias", 0), ("time_emb_proj.weight", 0), ("time_emb_proj.bias", 0),
        ("norm2.weight", 0), ("norm2.bias", 0), ("conv2.weight", 1),
    ):  # fmt: skip
        full = f"unet.mid_block.resnets.0.{name}"
        was = model.graph.initializers[full].const_value.numpy()
        assert np.array_equal(weights[full].const_value.numpy(), was.take(kept, axis)), name
        assert weights[full].shape == weights[full].const_value.shape
    norm = weights["unet.mid_block.resnets.0.norm2.weight"].uses()[0].node
    assert norm.attributes["num_groups"].as_int() == 16
    assert "shape" not in str(norm.outputs[0].shape) and norm.outputs[0].shape[1] == 32


def test_both_halves_of_a_gated_layer_lose_the_same_neurons(load, measured):
    model = load("unet")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net"
    small, inputs, _ = narrow(model, "unet", recipe("neurons", fraction=0.25), measured(model))
    kept = inputs.kept[f"{name}.2.weight"]
    was, made = (one.graph.initializers[f"unet.{name}.0.proj.bias"].const_value.numpy() for one in (model, small))
    assert len(kept) == 96
    assert np.array_equal(made, np.concatenate([was[:128][kept], was[128:][kept]]))


def test_all_kinds_at_once_leave_a_model_that_hoists_and_runs_alike(load, measured):
    model = load("unet")
    small, _, left = narrow(model, "unet", recipe(*KINDS), measured(model))
    assert left == []
    given = feeds(model)
    (whole,) = run(small, given).values()
    split = hoist(small, HOISTED_INPUTS)
    made = dict(given)
    for part in split.parts.values():
        made |= run(part, given)
    assert np.allclose(next(iter(run(split.step, made).values())), whole, **SAME)


def test_the_model_itself_stays_as_it_was(load, measured):
    model = load("unet")
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    shapes = [[str(value.shape) for value in node.outputs] for node in model.graph]
    narrow(model, "unet", recipe(*KINDS), measured(model))
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    assert [[str(value.shape) for value in node.outputs] for node in model.graph] == shapes


def test_the_blocks_that_patterns_name_are_narrowed_and_no_others(load, measured):
    model = load("unet")
    _, inputs, _ = narrow(model, "unet", recipe("heads", blocks=("mid_block.*.attn1.*",)), measured(model))
    assert list(inputs.kept) == ["mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"]


def test_what_stays_makes_up_for_what_goes(load, measured):
    """Of two heads that are alike one goes, and the other does its work."""
    model = load("text_encoder")
    rng = np.random.default_rng(5)
    for layer in find_layers(model):
        if layer.name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"):
            matrix = layer.matrix()
            matrix[16:] = matrix[:16]
            layer.value.const_value = ir.tensor(layer.tensor(matrix), name=layer.value.name)
            bias = model.graph.initializers[f"text_encoder.{layer.name.replace('weight', 'bias')}"]
            bias.const_value = ir.tensor(np.tile(bias.const_value.numpy()[:16], 2), name=bias.name)
    inputs = measured(model)
    samples = rng.standard_normal((200, 16))
    covariance = np.tile(samples.T @ samples / len(samples), (2, 2))
    for layer in consumers(model, "heads"):
        np.save(channel_covariance_file(inputs.covariances, layer.name), covariance)
    given = feeds(model)
    wanted, corrected, cut = (
        next(iter(run(one, given).values()))
        for one in (model, *(narrow(model, "text_encoder", recipe("heads", correct=c), inputs)[0] for c in (1, 0)))
    )
    # what is damped, by 1%, is all that is missing
    assert np.abs(corrected - wanted).max() < 0.05 * np.abs(cut - wanted).max()


def test_a_block_that_is_used_elsewhere_keeps_its_channels_and_is_named(load, measured):
    model = load("vae_decoder")
    layer = consumers(model, "channels")[0]
    extra = ir.node("Relu", [layer.node.inputs[0]])
    model.graph.insert_before(layer.node, extra)
    _, inputs, (left,) = narrow(model, "vae_decoder", recipe("channels"), measured(model))
    assert left.layer == layer.name
    assert left.reason.startswith("keeps its channels")
    assert "is used by a Relu elsewhere" in left.reason
    assert layer.name not in inputs.kept


def test_a_head_that_is_the_only_one_stays_and_is_named(load, measured):
    model = load("vae_decoder")
    _, _, (left,) = narrow(model, "vae_decoder", recipe("heads"), measured(model))
    assert left.layer == "decoder.mid_block.attentions.0.to_out.0.weight"
    assert "of 1 to choose from, 0.5 is less than one" in left.reason


def test_a_block_of_another_make_is_refused(load):
    with pytest.raises(UnfitError, match="are not neurons"):
        find_block(consumers(load("unet"), "heads")[0], "neurons")
    first = find_layers(load("vae_decoder"))[0]  # made of the latent
    with pytest.raises(UnfitError):
        find_block(first, "channels")


def test_a_layer_that_was_too_wide_to_measure_is_left(load, tmp_path):
    _, _, left = narrow(load("vae_decoder"), "vae_decoder", recipe("channels"), Inputs({}, tmp_path))
    assert len(left) == 10
    assert all("is too large" in one.reason for one in left)


def test_a_covariance_that_does_not_fit_says_of_which_layer(load, measured):
    model = load("text_encoder")
    inputs = measured(model)
    layer = consumers(model, "neurons")[0]
    np.save(channel_covariance_file(inputs.covariances, layer.name), np.eye(3))
    with pytest.raises(UserError, match=r"can't be applied to 'encoder\.layers\.0\.mlp\.fc2\.weight' of text_encoder"):
        narrow(model, "text_encoder", recipe("neurons"), inputs)


def test_statistics_are_those_of_the_channels_that_stay(load, tmp_path):
    layer = consumers(load("vae_decoder"), "channels")[0]  # 3x3 places of 32 channels
    values = np.random.default_rng(1).standard_normal((2, 32, 5, 7)).astype(np.float32)
    statistics = TensorStatistics.empty(32)
    statistics.add(values, 1)
    np.save(covariance_file(tmp_path, layer.name), np.arange(288.0 * 288).reshape(288, 288))
    model = load("vae_decoder")
    kept = np.arange(0, 32, 2)
    inputs = Inputs({layer.input_name: statistics}, tmp_path)
    np.save(channel_covariance_file(tmp_path, layer.name), np.diag(np.tile([1.0, 0], 16)))
    small, narrowed, _ = narrow(model, "vae_decoder", recipe("channels", blocks=(layer.name,)), inputs)
    assert len(narrowed.kept[layer.name]) == 16
    (smaller,) = [one for one in find_layers(small) if one.name == layer.name]
    inputs = inputs.narrowed({layer.name: kept})
    squares = np.square(values).mean((0, 2, 3))[::2]
    assert np.allclose(inputs.mean_squares(smaller), np.tile(squares, 9), rtol=1e-5)
    found = inputs.covariance(smaller)
    assert found.shape == (144, 144)
    assert found[0, :18].tolist() == [*range(0, 32, 2), 32, 34]


def test_rows_of_a_convolution_are_places_of_its_pictures(load):
    layer = consumers(load("vae_decoder"), "channels")[0]
    values = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    assert channel_rows(layer, values, 512).tolist() == [
        [0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11], [12, 16, 20], [13, 17, 21], [14, 18, 22], [15, 19, 23]
    ]  # fmt: skip
