"""What is no Stable Diffusion inpainting checkpoint, or a damaged one, is refused with the reason."""

import json
import shlex
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from outzoom.export import Plan, Shapes, open_checkpoint, read_recipe
from outzoom.export.checkpoint import MAX_CONFIG_BYTES, PART_OF
from outzoom.export.reading import run_module
from outzoom.runtime import UserError
from outzoom.runtime.safetensors import read_header

UNET, VAE, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"
CONFIGS = ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def configure(checkpoint, name, **changes):
    """Change a configuration; None takes a key out."""
    config = {**json.loads((checkpoint / name).read_text()), **changes}
    (checkpoint / name).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_weights(checkpoint, stem, change):
    weights = load_file(checkpoint / f"{stem}.safetensors")
    changed = change(weights)
    save_file(weights if changed is None else changed, checkpoint / f"{stem}.safetensors")


def plan(checkpoint, out="out", size=(64, 64)):
    recipes = (read_recipe("fp32"),)
    return Plan(open_checkpoint(checkpoint), ("onnxruntime",), recipes, Shapes((size,)), checkpoint.parent / out)


def assert_refused(checkpoint, *words, use=open_checkpoint):
    with pytest.raises(UserError) as error:
        use(checkpoint)
    for word in words:
        assert word in str(error.value)
    assert error.value.hint
    return error.value


def test_a_good_checkpoint_opens(tiny_checkpoint):
    opened = open_checkpoint(tiny_checkpoint)
    assert (opened.native_side, opened.vae_scale_factor, opened.size_multiple) == (64, 8, 16)
    assert opened.weights("unet")["conv_in.weight"].shape == (32, 9, 3, 3)
    assert len(opened.sha256) == 64


def test_its_hash_covers_weights_and_configurations(tiny_checkpoint, checkpoint):
    before = open_checkpoint(tiny_checkpoint).sha256
    assert open_checkpoint(checkpoint).sha256 == before
    change_weights(checkpoint, TEXT, lambda weights: {name: weight + 1 for name, weight in weights.items()})
    assert (after := open_checkpoint(checkpoint).sha256) != before
    configure(checkpoint, "vae/config.json", scaling_factor=0.5)
    assert open_checkpoint(checkpoint).sha256 not in (before, after)


def test_what_is_not_there_is_no_checkpoint(tmp_path):
    assert_refused(tmp_path / "nowhere", "there is no checkpoint", "nowhere")
    assert_refused(tmp_path / ("a" * 5000), "aaaa")


def test_a_folder_or_file_of_something_else_is_not_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert_refused(tmp_path, "is not a checkpoint", "model_index.json")
    assert_refused(tmp_path / "notes.txt", "is not a checkpoint")


@pytest.mark.parametrize(
    ("channels", "words"),
    [(4, ["text-to-image", "4 input channels"]), (7, ["not an inpainting", "7 input"]), (None, ["not an inpainting"])],
)
def test_a_unet_that_does_not_inpaint_is_named_for_what_it_is(checkpoint, channels, words):
    configure(checkpoint, "unet/config.json", in_channels=channels)
    error = assert_refused(checkpoint, "has 9", *words)
    assert "inpainting" in error.hint


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (CONFIGS[0], {"_class_name": "SD3Transformer2DModel"}, ["the unet", "SD3Transformer2DModel"]),
        (CONFIGS[0], {"_class_name": None}, ["the unet", "None"]),
        (CONFIGS[1], {"_class_name": "VQModel"}, ["the vae", "VQModel", "AutoencoderKL"]),
        (CONFIGS[2], {"architectures": ["T5EncoderModel"]}, ["the text_encoder", "T5EncoderModel", "CLIPTextModel"]),
    ],
    ids=["unet", "unet without class", "vae", "text encoder"],
)
def test_a_part_of_another_class_is_named(checkpoint, name, changes, words):
    configure(checkpoint, name, **changes)
    assert_refused(checkpoint, *words)


@pytest.mark.parametrize("stem", [UNET, VAE, TEXT])
def test_missing_weights_are_named(checkpoint, stem):
    (checkpoint / f"{stem}.safetensors").unlink()
    assert_refused(checkpoint, stem.split("/")[0], f"has no {stem.split('/')[1]}.safetensors")


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
def test_pickles_are_not_read_and_the_command_that_converts_them_is_given(checkpoint, suffix):
    (checkpoint / f"{UNET}.safetensors").rename(checkpoint / f"{UNET}{suffix}")
    for given in (checkpoint, checkpoint / f"{UNET}{suffix}"):
        error = assert_refused(given, "pickle", "not read", f"{UNET}{suffix}")
        assert f'DiffusionPipeline.from_pretrained("{checkpoint}")' in conversion(error)
    (checkpoint / f"it's a model{suffix}").write_bytes(b"")
    script = conversion(assert_refused(checkpoint / f"it's a model{suffix}", "pickle", "not read"))
    assert f'StableDiffusionInpaintPipeline.from_single_file("{checkpoint}/it\'s a model{suffix}")' in script


def conversion(error):
    """The Python in the command of a hint, as the shell passes it on."""
    python, flag, script = shlex.split(error.hint[error.hint.index("python -c") :])
    assert (python, flag) == ("python", "-c")
    assert "safe_serialization=True" in script
    compile(script, "hint", "exec")
    return script


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("data", "word"),
    [
        (None, "has no"),
        (b"", "is not JSON"),
        (b"{'a': 1}", "is not JSON"),
        (b'"\xff\xfe"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "no JSON object"),
        (b" " * (MAX_CONFIG_BYTES + 1), "no configuration"),
    ],
    ids=["missing", "empty", "Python", "not UTF-8", "deep", "a list", "huge"],
)
def test_a_damaged_configuration_is_named(checkpoint, name, data, word):
    (checkpoint / name).unlink() if data is None else (checkpoint / name).write_bytes(data)
    assert_refused(checkpoint, name, word)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (CONFIGS[1], {"block_out_channels": []}, ["block_out_channels must be a list of 1 to 7"]),
        (CONFIGS[1], {"block_out_channels": [1] * 5000}, ["block_out_channels"]),
        (CONFIGS[0], {"block_out_channels": 64}, ["block_out_channels"]),
        (CONFIGS[1], {"scaling_factor": "0.18"}, ["scaling_factor must be 0.001 to 1000, got '0.18'"]),
        (CONFIGS[1], {"scaling_factor": 0}, ["scaling_factor", "got 0"]),
        (CONFIGS[1], {"scaling_factor": float("nan")}, ["scaling_factor", "got nan"]),
        (CONFIGS[1], {"latent_channels": 16}, ["latent_channels must be 4, got 16"]),
        (CONFIGS[2], {"max_position_embeddings": 10**9}, ["max_position_embeddings must be 3 to 4096"]),
        (CONFIGS[2], {"vocab_size": 0.5}, ["vocab_size", "got 0.5"]),
        (CONFIGS[2], {"hidden_size": True}, ["hidden_size", "got True"]),
        (CONFIGS[0], {"cross_attention_dim": 48}, ["text 48 wide", "gives 32"]),
    ],
)
def test_a_wrong_number_is_named(checkpoint, name, changes, words):
    configure(checkpoint, name, **changes)
    assert_refused(checkpoint, *words)


@pytest.mark.parametrize("side", [None, "64", [64, 64], 0, 10**9, True], ids=str)
def test_a_checkpoint_without_a_size_of_its_own_asks_for_one(checkpoint, side):
    configure(checkpoint, "unet/config.json", sample_size=side)
    assert (
        "--size" in assert_refused(checkpoint, "sample_size", use=lambda path: open_checkpoint(path).native_side).hint
    )
    plan(checkpoint)  # with a size, it builds


@pytest.mark.parametrize(
    ("size", "near"),
    [((65, 64), "64x64"), ((64, 0), "64x16"), ((8, 8), "16x16"), ((99_999, 64), "4096x64"), ((-64, 64), "16x64")],
    ids=str,
)
def test_a_size_that_the_model_cannot_take_comes_with_the_nearest(tiny_checkpoint, size, near):
    refused = assert_refused(
        tiny_checkpoint, "multiples of 16", f"{size[0]}x{size[1]}", use=lambda path: plan(path, size=size)
    )
    assert near in refused.hint


def test_keys_that_older_versions_did_not_write_have_their_defaults(checkpoint):
    # the VAEs of SD1 and SD2 came without scaling_factor
    configure(checkpoint, "vae/config.json", scaling_factor=None, latent_channels=None, in_channels=None)
    configure(checkpoint, "text_encoder/config.json", max_position_embeddings=None, architectures=None)
    opened = open_checkpoint(checkpoint)
    assert opened.config("vae")["scaling_factor"] == 0.18215
    assert opened.config("text_encoder")["max_position_embeddings"] == 77


def header(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", ["header claims", "0 bytes"], id="empty"),
        pytest.param(b"1234", ["header claims"], id="no header"),
        pytest.param(header(entry(), length=2**63), ["header claims", str(2**63)], id="header longer than the file"),
        pytest.param(header(entry(), bytes(24), length=10), ["damaged"], id="header cut short"),
        pytest.param(header(b"pickle"), ["malformed"], id="not JSON"),
        pytest.param(header(b'{"\xff": 1}'), ["utf-8"], id="not UTF-8"),
        pytest.param(header(b"[]"), ["Expected `object`"], id="a list"),
        pytest.param(header(b'{"x": ' + b"[" * 99_999 + b"]" * 99_999 + b"}"), ["recursion"], id="deep"),
        pytest.param(header({"x": 1}), ["tensor 'x'", "Expected `object`"], id="entry is a number"),
        pytest.param(header({"x": {}}), ["tensor 'x'", "`dtype`"], id="entry is empty"),
        pytest.param(header(entry(dtype=[1]), bytes(24)), ["$.dtype"], id="dtype is a list"),
        pytest.param(header(entry(shape=[2.5, 3]), bytes(24)), ["$.shape"], id="broken shape"),
        pytest.param(header(entry(shape="23"), bytes(24)), ["$.shape"], id="shape is text"),
        pytest.param(header(entry(shape=[-2, -3]), bytes(24)), ["(-2, -3)"], id="negative shape"),
        pytest.param(header(entry(shape=[2, 2]), bytes(24)), ["(2, 2) has 24 bytes"], id="size mismatch"),
        pytest.param(header(entry(shape=[2**62, 2**62]), bytes(24)), ["has 24 bytes"], id="huge shape"),
        pytest.param(header(entry(), bytes(23)), ["outside the file"], id="data cut short"),
        pytest.param(header(entry(data_offsets=[-24, 0]), bytes(24)), ["outside the file"], id="before the data"),
        pytest.param(header(entry(data_offsets=[24, 0]), bytes(24)), ["outside the file"], id="backwards"),
        pytest.param(header(entry(data_offsets=[0]), bytes(24)), ["$.data_offsets"], id="one offset"),
        pytest.param(header(entry(data_offsets=["0", "24"]), bytes(24)), ["$.data_offsets"], id="offsets are text"),
    ],
)
def test_damaged_safetensors_are_refused_before_anything_is_built(checkpoint, data, words):
    (checkpoint / f"{VAE}.safetensors").write_bytes(data)
    assert_refused(checkpoint, f"{VAE}.safetensors", "damaged", *words)


def test_a_header_over_the_limit_is_not_read(checkpoint, monkeypatch):
    monkeypatch.setattr("outzoom.runtime.safetensors.MAX_HEADER_BYTES", 100)
    assert_refused(checkpoint, "damaged", "header claims")


def test_a_header_says_where_the_data_lies(tmp_path):
    text = json.dumps({"__metadata__": {"format": "pt"}, **entry()}).encode()
    (tmp_path / "x.safetensors").write_bytes(header(text, bytes(24)))
    (tensor,) = read_header(tmp_path / "x.safetensors").values()
    assert (tensor.offset, tensor.size_bytes, tensor.shape, tensor.dtype) == (8 + len(text), 24, (2, 3), "F32")


def run_modules(checkpoint):
    for component in PART_OF:
        probed = Path(tempfile.mkdtemp(dir=checkpoint.parent))
        run_module(probed, checkpoint=open_checkpoint(checkpoint), component=component, shapes=Shapes(((64, 64),)))


@pytest.mark.parametrize(
    ("stem", "name", "change", "words"),
    [
        (TEXT, "final_layer_norm.bias", lambda weight: weight[:7], ["final_layer_norm.bias", "(7,)", "(32,)"]),
        (UNET, "conv_in.bias", lambda weight: weight[:7], ["conv_in.bias", "(7,)"]),
        (UNET, "mid_block.resnets.0.time_emb_proj.weight", lambda weight: weight.T.copy(), ["(128, 64)", "(64, 128)"]),
    ],
    ids=["text encoder", "size", "transposed"],
)  # fmt: skip
def test_a_weight_of_the_wrong_shape_stops_the_build(read_weights, checkpoint, stem, name, change, words):
    def reshape(weights):
        key = next(key for key in weights if key.endswith(name))
        weights[key] = change(weights[key])

    change_weights(checkpoint, stem, reshape)
    assert_refused(checkpoint, *words, use=run_modules)
    component = {UNET: "unet", TEXT: "text_encoder"}[stem]
    assert_refused(checkpoint, *words, use=lambda path: read_weights(open_checkpoint(path), component))


def test_a_weight_that_is_missing_stops_the_export(read_weights, checkpoint):
    change_weights(checkpoint, VAE, lambda weights: {k: v for k, v in weights.items() if k != "decoder.conv_in.bias"})
    assert_refused(
        checkpoint,
        "no weight",
        "decoder.conv_in.bias",
        use=lambda path: read_weights(open_checkpoint(path), "vae_decoder"),
    )


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_a_weight_of_a_type_that_engines_do_not_take_stops_the_export(read_weights, checkpoint, dtype):
    change_weights(checkpoint, VAE, lambda weights: {k: v.astype(dtype) for k, v in weights.items()})
    assert_refused(
        checkpoint, "expected F32, F16 or BF16", use=lambda path: read_weights(open_checkpoint(path), "vae_decoder")
    )


def test_attention_weights_under_their_old_names_are_the_same(read_weights, tiny_checkpoint, checkpoint):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(weights):
        renamed = {}
        for name, weight in weights.items():
            for new_name, old_name in old.items():
                name = name.replace(new_name, old_name)
            renamed[name] = weight
        assert len(renamed.keys() - weights.keys()) == 16  # both halves have one attention with 8 weights
        return renamed

    change_weights(checkpoint, VAE, rename)
    expected, found = (
        read_weights(open_checkpoint(tiny_checkpoint), "vae_decoder"),
        read_weights(open_checkpoint(checkpoint), "vae_decoder"),
    )
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_the_fp16_variant_is_found_and_read_as_float32(read_weights, tiny_checkpoint, checkpoint):
    change_weights(
        checkpoint, VAE, lambda weights: {name: weight.astype(np.float16) for name, weight in weights.items()}
    )
    (checkpoint / f"{VAE}.safetensors").rename(checkpoint / f"{VAE}.fp16.safetensors")
    expected, found = (
        read_weights(open_checkpoint(tiny_checkpoint), "vae_decoder"),
        read_weights(open_checkpoint(checkpoint), "vae_decoder"),
    )
    for name, weight in found.items():
        assert weight.dtype == expected[name].dtype
        if weight.dtype == np.float32:
            assert np.allclose(weight, expected[name], rtol=2**-11, atol=2**-25)  # half an ulp of float16


def test_a_checkpoint_without_a_tokenizer_is_refused_before_the_work(checkpoint):
    shutil.rmtree(checkpoint / "tokenizer")
    assert_refused(checkpoint, "the tokenizer in", "can't be read", use=plan)


def test_a_tokenizer_in_the_files_of_transformers_4_is_planned_with(checkpoint):
    model = json.loads((checkpoint / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
    (checkpoint / "tokenizer" / "tokenizer.json").unlink()
    (checkpoint / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (checkpoint / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")
    plan(checkpoint)
    (checkpoint / "tokenizer" / "merges.txt").unlink()
    assert_refused(checkpoint, "the tokenizer in", use=plan)


def test_a_tokenizer_of_another_text_encoder_is_refused(checkpoint):
    configure(checkpoint, "text_encoder/config.json", vocab_size=100)
    assert_refused(checkpoint, " tokens", "knows 100", use=plan)


def test_a_scheduler_that_the_runtime_cannot_follow_is_refused_before_the_work(checkpoint):
    configure(checkpoint, "scheduler/scheduler_config.json", prediction_type="flow_prediction")
    with pytest.raises(UserError, match="prediction_type"):
        plan(checkpoint)


@pytest.fixture
def sharded(checkpoint):
    """The copy with the UNet's weights in several files and an index, as diffusers writes them."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", low_cpu_mem_usage=False)
    (checkpoint / f"{UNET}.safetensors").unlink()
    unet.save_pretrained(checkpoint / "unet", max_shard_size="300KB")
    return checkpoint


def test_shards_are_found_by_their_index(tiny_checkpoint, sharded):
    whole, parts = open_checkpoint(tiny_checkpoint), open_checkpoint(sharded)
    assert len(parts.weight_files("unet")) > 2
    shapes = {name: tensor.shape for name, tensor in parts.weights("unet").items()}
    assert shapes == {name: tensor.shape for name, tensor in whole.weights("unet").items()}
    assert whole.sha256 != parts.sha256


def test_a_sharded_checkpoint_is_traced_with_the_same_weights(read_weights, tiny_checkpoint, sharded):
    expected, found = (
        read_weights(open_checkpoint(tiny_checkpoint), "unet"),
        read_weights(open_checkpoint(sharded), "unet"),
    )
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "../model.safetensors"}, "no shard beside it"),
        ({"a": "/etc/passwd"}, "no shard beside it"),
        ({"a": "shard.bin"}, "no shard beside it"),
        ({"a": "missing.safetensors"}, "missing"),
        ({"a": 3}, "weight_map"),
        ({}, "weight_map"),
        (None, "weight_map"),
    ],
    ids=["parent", "absolute", "pickle", "missing", "number", "empty", "none"],
)
def test_an_index_that_names_something_else_is_refused(sharded, weight_map, word):
    (sharded / f"{UNET}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_refused(sharded, word)
