"""One .safetensors file in the original layout gives the tensors that the diffusers directory gives, in place."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from outzoom.export import open_checkpoint
from outzoom.export.single_file import CONFIGS_FOLDER, MAX_TENSORS, read_single_file
from outzoom.runtime import UserError

PARTS = ("unet", "vae", "text_encoder")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
UNET = "model.diffusion_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm.weight": "ln_final.weight",
    "embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip


def unet_key(name, config):
    """The original name of a UNet's tensor, from the original model's numbering of blocks."""
    layers, attention_down = config["layers_per_block"], [t.startswith("Cross") for t in config["down_block_types"]]
    attention_up = [t.startswith("Cross") for t in config["up_block_types"]]
    stem, kind = name.rsplit(".", 1)
    if stem in UNET_ENDS:
        return f"{UNET}{UNET_ENDS[stem]}.{kind}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", stem):
        what, i, rest = found.groups()
        place = f"middle_block.{1 if what == 'attentions' else 2 * int(i)}"
    else:
        side, block, what, i, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", stem).groups()
        block, i = int(block), int(i)
        if side == "down":
            at = 1 + block * (layers + 1) + (layers if what == "downsamplers" else i)
            place = f"input_blocks.{at}.{1 if what == 'attentions' else 0}"
            assert what != "attentions" or attention_down[block]
        else:
            at = block * (layers + 1) + (layers if what == "upsamplers" else i)
            last = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attention_up[block]}[what]
            place = f"output_blocks.{at}.{last}"
        if what == "downsamplers":
            rest = rest.replace("conv", "op")
    if what == "resnets":
        rest = RESNET[rest]
    return f"{UNET}{place}.{rest}.{kind}"


def vae_key(name, config):
    levels = len(config["block_out_channels"])
    stem, kind = name.rsplit(".", 1)
    stem = stem.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    stem = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", stem)
    stem = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", stem)
    stem = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", stem)
    stem = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", stem)
    stem = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", stem)
    stem = re.sub(r"mid_block\.attentions\.0\.(.*)", lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}", stem)
    return f"first_stage_model.{stem}.{kind}"


def open_clip_key(name):
    if name in OPEN_CLIP_ENDS:
        return f"cond_stage_model.model.{OPEN_CLIP_ENDS[name]}"
    layer, rest, kind = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name).groups()
    return f"cond_stage_model.model.transformer.resblocks.{layer}.{OPEN_CLIP[rest]}.{kind}"


def original(parts, configs, kind):
    """All tensors under their original names; `kind` of text encoder: "clip" or "open_clip"."""
    keys = {unet_key(name, configs["unet"]): tensor for name, tensor in parts["unet"].items()}
    for name, tensor in parts["vae"].items():
        linear = "attentions" in name and name.endswith("weight") and "group_norm" not in name
        keys[vae_key(name, configs["vae"])] = tensor[:, :, None, None] if linear else tensor
    text = {name.removeprefix("text_model."): tensor for name, tensor in parts["text_encoder"].items()}
    if kind == "clip":
        keys.update({f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()})
        return keys
    for name in list(text):
        if ".q_proj." in name:
            three = [text.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
            layer, end = re.search(r"layers\.(\d+)\.", name)[1], name.rsplit(".", 1)[1]
            keys[f"cond_stage_model.model.transformer.resblocks.{layer}.attn.in_proj_{end}"] = np.concatenate(three)
    keys.update({open_clip_key(name): tensor for name, tensor in text.items()})
    return keys


def part_files(checkpoint):
    return {part: checkpoint / part / f"{STEMS[part]}.safetensors" for part in PARTS}


def tiny_original(checkpoint, kind):
    configs = {part: json.loads((checkpoint / part / "config.json").read_text()) for part in PARTS}
    return original({part: load_file(file) for part, file in part_files(checkpoint).items()}, configs, kind)


def in_place(stored):
    """The tensors as arrays, read from where they are said to be."""
    arrays = {}
    for name, tensor in stored.items():
        data = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.size_bytes]
        dtype = {"F32": np.float32, "F16": np.float16}[tensor.dtype]
        arrays[name.removeprefix("text_model.")] = np.frombuffer(data, dtype).reshape(tensor.shape)
    return arrays


@pytest.fixture
def tensors(tiny_checkpoint):
    return tiny_original(tiny_checkpoint, "open_clip")


@pytest.fixture
def refused(tmp_path, tiny_checkpoint):
    def check(tensors, *words, config=tiny_checkpoint, part=None):
        """Opening these tensors as a file, or then converting a part, fails with these words."""
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError) as error:
            opened = open_checkpoint(tmp_path / "model.safetensors", config)
            if part:
                opened.weights(part)
        for word in words:
            assert word in str(error.value)
        assert error.value.hint
        return error.value

    return check


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_every_tensor_is_the_directorys(tiny_checkpoint, tmp_path, kind, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in tiny_original(tiny_checkpoint, kind).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    single, folder = open_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint), open_checkpoint(tiny_checkpoint)
    for part in PARTS:
        expected, found = in_place(folder.weights(part)), in_place(single.weights(part))
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            assert found[name].dtype == dtype
            assert np.array_equal(found[name], array.astype(dtype)), name
        assert {tensor.file for tensor in single.weights(part).values()} == {tmp_path / "model.safetensors"}


def test_all_components_are_exported_with_the_same_weights(read_weights, tiny_checkpoint, tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    single, folder = open_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint), open_checkpoint(tiny_checkpoint)
    for component in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        expected, found = (read_weights(c, component) for c in (folder, single))
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("kind", "name"), [("clip", "sd1.5-inpainting"), ("open_clip", "sd2-inpainting")])
def test_the_published_models_are_recognised_and_every_weight_of_theirs_is_found(
    tiny_checkpoint, tmp_path, kind, name, monkeypatch
):
    """At full size, with a file of holes: nothing in it is read."""
    import make_checkpoint

    models = make_checkpoint.empty_models(name)
    shapes = {part: {k: v.to("meta") for k, v in model.state_dict().items()} for part, model in models.items()}
    configs = {part: json.loads((CONFIGS_FOLDER / name / part / "config.json").read_text()) for part in PARTS}
    monkeypatch.setattr(np, "concatenate", sys.modules["torch"].cat)
    header, offset = {}, 0
    for key, tensor in original(shapes, configs, kind).items():
        size_bytes = 2 * math.prod(tensor.shape)
        header[key] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    encoded = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)
    assert read_single_file(tmp_path / "model.safetensors").known.name == name
    config = tmp_path / "config"  # the tiny checkpoint's tokenizer, and nothing else
    shutil.copytree(tiny_checkpoint / "tokenizer", config / "tokenizer")
    opened = open_checkpoint(tmp_path / "model.safetensors", config)
    assert (opened.native_side, opened.size_multiple, opened.tokenizer_folder) == (512, 64, config / "tokenizer")
    assert opened.config("scheduler")["prediction_type"] == "epsilon"
    for part in PARTS:
        found = {key.removeprefix("text_model."): tensor.shape for key, tensor in opened.weights(part).items()}
        assert found == {key.removeprefix("text_model."): tuple(tensor.shape) for key, tensor in shapes[part].items()}


def test_its_hash_covers_the_file_and_the_configurations(tiny_checkpoint, tmp_path, tensors):
    file, config = tmp_path / "model.safetensors", tmp_path / "config"
    shutil.copytree(tiny_checkpoint, config)
    save_file(tensors, file)
    before = open_checkpoint(file, config).sha256
    (config / "vae" / "config.json").write_text((config / "vae" / "config.json").read_text() + " ")
    assert (changed := open_checkpoint(file, config).sha256) != before
    save_file({**tensors, CONV_IN: tensors[CONV_IN] + 1}, file)
    assert open_checkpoint(file, config).sha256 not in (before, changed)


def test_averaged_weights_and_other_extras_are_left_out(tiny_checkpoint, tmp_path, tensors):
    extras = {f"model_ema.diffusion_model{i}": np.zeros(1, np.float32) for i in range(200)}
    extras |= {"betas": np.zeros(10, np.float32), "cond_stage_model.model.logit_scale": np.ones((), np.float32)}
    extras["cond_stage_model.model.text_projection"] = np.zeros((32, 32), np.float32)
    save_file({**tensors, **extras}, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint)
    for part in PARTS:
        assert len(opened.weights(part)) == len(open_checkpoint(tiny_checkpoint).weights(part))


@pytest.mark.parametrize(("channels", "word"), [(4, "text-to-image"), (8, "not an inpainting")])
def test_a_unet_that_does_not_inpaint_is_named_for_what_it_is(tensors, refused, channels, word):
    refused({**tensors, CONV_IN: tensors[CONV_IN][:, :channels].copy()}, word, f"{channels} input channels")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("conditioner.embedders.0.x", ["Stable Diffusion XL"]),
        ("control_model.x", ["ControlNet"]),
        ("lora_unet_x", ["LoRA"]),
        ("down_blocks.0.x", ["one part of a diffusers directory"]),
        ("model.diffusion_model.double_blocks.0.x", ["Flux"]),
        ("something.else", ["no Stable Diffusion checkpoint", CONV_IN]),
    ],
)
def test_another_model_is_named_for_what_it_is(refused, key, words):
    refused({key: np.zeros(1, np.float32)}, *words)


@pytest.mark.parametrize(("prefix", "part"), [("first_stage_model.", "vae"), ("cond_stage_model.", "text_encoder")])
def test_a_missing_part_is_named(tensors, refused, prefix, part):
    refused({name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}, f"has no {part}", prefix)


def test_a_missing_tensor_is_named_when_it_is_read(read_weights, tiny_checkpoint, tmp_path, tensors):
    del tensors["first_stage_model.decoder.conv_in.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint)
    with pytest.raises(UserError, match=r"no weight .*decoder\.conv_in\.bias"):
        read_weights(opened, "vae_decoder")


def test_a_text_encoder_of_another_kind_is_refused(tensors, refused):
    words = "cond_stage_model.model.token_embedding.weight"
    refused({name: tensor for name, tensor in tensors.items() if name != words}, "neither", "CLIP")
    refused({**tensors, words: np.zeros(4, np.float32)}, "token_embedding.weight", "(4,)")


def test_a_size_that_no_published_model_has_asks_for_its_configurations(tensors, refused):
    assert "--config" in refused(tensors, "32 wide", "768", "1024", config=None).hint


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"in_channels": 4}, ["in_channels is 4", "say 9"]),
        ("unet", {"block_out_channels": [64, 64]}, ["block_out_channels[0] is 64", "say 32"]),
        ("text_encoder", {"vocab_size": 7}, ["vocab_size is 7"]),
        ("text_encoder", {"hidden_size": 48}, ["hidden_size is 48", "say 32"]),
    ],
)
def test_configurations_of_another_model_are_refused(tiny_checkpoint, tmp_path, tensors, refused, part, changes, words):
    config = shutil.copytree(tiny_checkpoint, tmp_path / "config")
    file = config / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    refused(tensors, str(file), "does not fit", *words, config=config)


def test_configurations_must_come_with_a_tokenizer(tmp_path, tensors, refused):
    (tmp_path / "empty").mkdir()
    refused(tensors, "has no tokenizer/", config=tmp_path / "empty")
    refused(tensors, "there is no --config", config=tmp_path / "nowhere")


def test_a_directory_has_its_own_configurations(tiny_checkpoint):
    with pytest.raises(UserError, match="--config is for a single file"):
        open_checkpoint(tiny_checkpoint, tiny_checkpoint)


def test_a_tensor_that_is_not_one_piece_of_the_file_is_named(tensors, refused):
    key = "first_stage_model.decoder.mid.attn_1.q.weight"
    wide = np.zeros((*tensors[key].shape[:2], 3, 3), np.float32)
    refused({**tensors, key: wide}, "decoder.mid_block.attentions.0.to_q.weight", "one piece", part="vae")


@pytest.mark.parametrize(
    ("key", "shape", "part"),
    [
        ("first_stage_model.decoder.mid.attn_1.q.weight", (0, 3), "vae"),
        ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", (), "text_encoder"),
    ],
)
def test_a_shape_that_cannot_be_converted_is_refused(tensors, refused, key, shape, part):
    refused({**tensors, key: np.zeros(shape, np.float32)}, f"the {part} in", "can't be converted", part=part)


def test_the_slices_of_a_matrix_of_another_shape_stop_the_export(read_weights, tiny_checkpoint, tmp_path, tensors):
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    save_file({**tensors, key: tensors[key][:50].copy()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="expected F32, F16 or BF16 of shape"):
        read_weights(open_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint), "text_encoder")


def test_too_many_tensors_are_refused_before_they_are_compared(refused):
    tensors = {f"{UNET}input_blocks.{i}.0.weight": np.zeros(1, np.uint8) for i in range(MAX_TENSORS + 1)}
    refused(tensors, f"{MAX_TENSORS + 1} tensors")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1], ids=["nothing", "no header", "half a header", "one byte missing"])
def test_a_file_cut_short_is_refused(tiny_checkpoint, tmp_path, tensors, keep):
    save_file(tensors, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged") as error:
        open_checkpoint(tmp_path / "cut.safetensors", tiny_checkpoint)
    assert "cut.safetensors" in str(error.value)


def test_a_folder_of_single_files_is_told_from_a_checkpoint(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model_index\.json") as error:
        open_checkpoint(tmp_path)
    assert str(Path(tmp_path / "model.safetensors")) in error.value.hint
