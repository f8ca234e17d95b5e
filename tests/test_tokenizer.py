"""The tokenizer against transformers' CLIPTokenizer, from both forms that its files come in."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import outzoom
from outzoom.runtime import BundleError, UserError
from outzoom.runtime import tokenizer as module
from outzoom.runtime.tokenizer import ClipTokenizer

DEMO = Path(outzoom.__file__).parent / "models" / "demo" / "tokenizer"
TOKENS = 77
PROMPTS = {
    "empty": "",
    "words": "an underwater reef with orange fish",
    "uppercase": "A NIGHT Sky",
    "contractions": "it's the fish we've seen, they're I'm you'd don't we'll THE'RE ''s 's's",
    "numbers": "3 fish, 1234 stars, १२३ ٣ ½ Ⅷ",
    "punctuation": "reef!!! _under_score-dash—em… (what?!) !",
    "whitespace": "  tabs\t and\nlines\r\n \u00a0and \u2003others \u200b ",
    "accents": "é café ÅÄÖ İstanbul ß ẞ",
    "combining": "a\u0301 n\u0303 ﬁ",
    "other scripts": "海の魚 рыба سمك",
    "emoji": "🐟🐠 a 👩‍👩‍👧 reef 🏳️‍🌈",
    "control characters": "a\x00b\x1fc\x85d",
    "special tokens in the text": "<|endoftext|> b <|startoftext|>a<|endoftext|>b <|EndOfText|>",
    "long word": "x" * 300,
    "long": "a reef " * 500,
    "cut inside a word": "a " * 74 + "kaleidoscopic",
}


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def pair(request, tmp_path_factory):
    """The tokenizer of transformers and ours, from the same folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(DEMO / "tokenizer_config.json", folder)
    if request.param == "tokenizer.json":
        shutil.copy(DEMO / "tokenizer.json", folder)
    else:
        write_old_form(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CLIPTokenizer
    return CLIPTokenizer.from_pretrained(folder), ClipTokenizer(folder, TOKENS)


def vocabulary():
    return json.loads((DEMO / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]


def write_old_form(folder):
    model = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")


def assert_same_ids(pair, prompt):
    theirs, ours = pair
    expected = theirs(prompt, padding="max_length", max_length=TOKENS, truncation=True).input_ids
    ids = ours.encode(prompt)
    assert ids.shape == (1, TOKENS)
    assert ids.dtype == np.int64
    assert ids[0].tolist() == expected
    assert ours.count(prompt) == len(theirs(prompt, add_special_tokens=False, verbose=False).input_ids)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_ids_are_those_of_transformers(pair, prompt):
    assert_same_ids(pair, prompt)


@settings(max_examples=500, deadline=None)
@given(prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("aAé's!.<|>\t 1", max_size=40))
def test_the_ids_of_any_text_are_those_of_transformers(pair, prompt):
    assert_same_ids(pair, prompt)


def test_the_padding_is_the_checkpoints_own(tmp_path):
    write_old_form(tmp_path)
    start, end, exclamation = (vocabulary()[token] for token in ("<|startoftext|>", "<|endoftext|>", "!"))
    assert ClipTokenizer(tmp_path, 4).encode("")[0].tolist() == [start, end, end, end]
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}')
    assert ClipTokenizer(tmp_path, 4).encode("")[0].tolist() == [start, end, exclamation, exclamation]


def test_the_vocabulary_size_counts_every_id(pair):
    assert pair[1].vocabulary_size == max(vocabulary().values()) + 1


def test_text_that_is_not_unicode_is_the_users_mistake(pair):
    prompt = b"caf\xe9".decode("utf-8", "surrogateescape")  # what a Latin-1 argument arrives as
    with pytest.raises(UserError, match="not valid text") as error:
        pair[1].encode(prompt)
    assert "UTF-8" in error.value.hint


def assert_refused(folder, message):
    with pytest.raises(BundleError, match=message) as error:
        ClipTokenizer(folder, TOKENS)
    assert error.value.hint


def test_a_missing_folder_is_refused(tmp_path):
    assert_refused(tmp_path / "nowhere", "can't be read")


@pytest.mark.parametrize("token", ["<|startoftext|>", "<|endoftext|>", "!"])
@pytest.mark.parametrize("form", ["new", "old"])
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path, token, form):
    if form == "old":
        write_old_form(tmp_path)
    else:
        shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "!"}')
    file = tmp_path / ("vocab.json" if form == "old" else "tokenizer.json")
    file.write_text(file.read_text("utf-8").replace(f'"{token}"', '"<|other|>"'), "utf-8")
    assert_refused(tmp_path, "has no token")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("data", [b"\xff\xfe", b"[1]"], ids=["not UTF-8", "other text"])
def test_damaged_old_files_are_refused(tmp_path, name, data):
    write_old_form(tmp_path)
    (tmp_path / name).write_bytes(data)
    assert_refused(tmp_path, "can't be read")
    (tmp_path / name).unlink()
    assert_refused(tmp_path, "can't be read")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENIZER_BYTES", 100)
    write_old_form(tmp_path)
    assert_refused(tmp_path, "over 100 bytes")
