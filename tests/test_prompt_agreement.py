"""Prompt agreement by a tiny CLIP of random weights, which a test saves as a user would."""

import json
import shutil
import socket
import sys

import numpy as np
import pytest

from outzoom.benchmarks import BenchSettings, run_bench
from outzoom.benchmarks.prompt_agreement import PromptAgreement, check_clip
from outzoom.benchmarks.readme import ROOT
from outzoom.runtime import MissingPackageError, UserError

TOKENIZER = ROOT / "models" / "demo" / "tokenizer"
REEF = "an underwater reef"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of 32x32 pixels and patches of 8."""
    import torch
    import transformers

    from outzoom.benchmarks.prompt_agreement import _image_processor

    torch.manual_seed(3)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 77, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    _image_processor()(**sides).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def agreement(clip):
    return PromptAgreement(clip)


@pytest.fixture
def copy(clip, tmp_path):
    return shutil.copytree(clip, tmp_path / "clip")


def test_a_score_is_a_cosine_and_the_same_for_the_same_picture(agreement, picture):
    score = agreement.of(picture, REEF)
    assert isinstance(score, float)
    assert -1 <= score <= 1
    assert agreement.of(picture.copy(), REEF) == score


def test_other_pictures_and_other_prompts_have_other_scores(agreement, picture):
    score = agreement.of(picture, REEF)
    assert agreement.of(255 - picture, REEF) != score
    assert agreement.of(picture, "a meadow with poppies") != score


def test_pictures_of_any_shape_and_prompts_of_any_length_have_a_score(agreement):
    picture = np.random.default_rng(0).integers(0, 256, (40, 96, 3), np.uint8)
    for prompt in ("", "a meadow " * 200, "\N{WATER WAVE}"):
        assert -1 <= agreement.of(picture, prompt) <= 1


def test_it_is_the_cosine_of_what_the_model_embeds(clip, agreement, picture):
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(clip)
    tokens = transformers.CLIPTokenizer.from_pretrained(clip)([REEF], return_tensors="pt")
    pixels = agreement._images(images=[picture], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    with torch.no_grad():
        found = model(**tokens, pixel_values=pixels)
    one, other = found.image_embeds[0].numpy(), found.text_embeds[0].numpy()
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert agreement.of(picture, REEF) == pytest.approx(cosine, abs=1e-6)


def test_nothing_is_asked_of_the_network(clip, picture, monkeypatch):
    def connect(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    PromptAgreement(clip).of(picture, REEF)


def test_a_folder_that_is_not_there_or_holds_no_clip_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        check_clip(tmp_path / "nothing")
    with pytest.raises(UserError, match="there is no folder"):
        check_clip(copy / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="can't be read"):
        check_clip(tmp_path / "empty")
    (copy / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="of a 'llama'"):
        check_clip(copy)
    for nonsense in (b"[]", b"\xff\xfe", b"{"):
        (copy / "config.json").write_bytes(nonsense)
        with pytest.raises(UserError, match="no configuration"):
            check_clip(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "flax_model.msgpack"])
def test_weights_that_may_run_code_are_refused_unread(copy, name):
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="not read") as caught:
        PromptAgreement(copy)
    assert name in str(caught.value)


def test_a_pickle_beside_safetensors_is_not_read(copy, picture):
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert -1 <= PromptAgreement(copy).of(picture, REEF) <= 1


@pytest.mark.parametrize(
    "names", [["model.safetensors"], ["tokenizer.json", "vocab.json"], ["preprocessor_config.json"]]
)
def test_a_missing_file_is_named(copy, names):
    for name in names:
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"has no {names[0]}"):
        check_clip(copy)


def test_damaged_weights_are_the_users_mistake(copy):
    (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(UserError, match="can't be loaded"):
        PromptAgreement(copy)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named(clip, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        check_clip(clip)
    assert "outzoom[quality]" in caught.value.hint


def test_a_benchmark_tells_the_last_keyframes_agreement(tiny_bundles, clip, tmp_path):
    quick = {"seconds": 0.3, "keyframe_every": 4, "steps": 2, "runs": 3, "warm_ups": 1}
    paths = list(tiny_bundles.values())
    results = run_bench(paths, tmp_path / "out", BenchSettings(**quick, clip=clip))
    assert all(-1 <= bundle.prompt_agreement <= 1 for bundle in results.bundles)
    told = []
    with pytest.raises(UserError, match="there is no folder"):
        run_bench(paths, tmp_path / "other", BenchSettings(**quick, clip=tmp_path / "none"), told.append)
    assert told == []
