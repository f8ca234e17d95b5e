"""Keyframes in a folder: what is kept comes back, and what is another zoom's or damaged is refused."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from outzoom.runtime import KeyframeFolder, UserError, remove_keyframes

SETTINGS = {"steps": 20, "guided": (0.0, 1.0), "picture": "a" * 64}
PROMPTS = ["", "a reef", "a sea", "a sky"]


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, 12, 16, 3), np.uint8)


@pytest.fixture
def folder_of(tmp_path):
    def folder_of(prompts=PROMPTS, size=(16, 12), **settings):
        made_from = lambda i: {"prompt": prompts[i], "scale": 0.5}  # noqa: E731
        return KeyframeFolder(tmp_path / "run", size, {**SETTINGS, **settings}, made_from)

    return folder_of


@pytest.fixture
def kept(folder_of, pictures):
    folder = folder_of()
    for index in range(3):
        folder.save(index, pictures[index])
    return folder


def test_what_is_kept_comes_back_bit_by_bit(kept, folder_of, pictures):
    again = folder_of()
    assert again.count(3) == 3
    for index in range(3):
        assert np.array_equal(again.load(index), pictures[index])


def test_a_folder_is_made_with_the_first_keyframe(folder_of, pictures, tmp_path):
    folder = folder_of()
    assert folder.count(3) == 0
    assert not folder.path.exists()
    folder.save(0, pictures[0])
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "00000.png", "keyframes.json"]
    assert json.loads((folder.path / "keyframes.json").read_text())["settings"]["steps"] == 20


def test_two_zooms_do_not_keep_keyframes_in_one_folder(kept, folder_of, pictures):
    other = folder_of()
    assert other.count(3) == 3
    with pytest.raises(UserError, match="another zoom is at work"):
        other.save(3, pictures[3])
    kept.remove()
    other.save(0, pictures[0])


def test_only_keyframes_without_a_gap_count(kept, folder_of):
    kept._file(1).unlink()
    assert folder_of().count(3) == 1


def test_other_settings_are_refused_with_both_values(kept, folder_of):
    with pytest.raises(UserError, match="steps 20 there, 30 here; another picture") as caught:
        folder_of(steps=30, picture="b" * 64)
    assert "--restart" in caught.value.hint


def test_a_prompt_that_changed_is_refused_from_its_keyframe_on(kept, folder_of):
    other = folder_of(["", "a reef", "a town", "a sky"])
    with pytest.raises(UserError, match=r'00002\.png is of another zoom: prompt "a sea" there, "a town" here'):
        other.count(3)
    assert other.count(1) == 2
    assert folder_of([*PROMPTS[:3], "another end"]).count(3) == 3


def test_a_keyframe_after_one_that_changed_is_refused_even_where_nothing_else_did(kept, folder_of):
    other = folder_of(["", "a town", "a sea", "a sky"])
    kept._file(1).unlink()
    with pytest.raises(UserError, match=r"00002\.png is of another zoom: one before it is another"):
        other.count(3)


def damage(file, how):
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[:-40])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "one bit":
        middle = data.index(b"IDAT") + 60
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "a picture from elsewhere":
        Image.new("RGB", (16, 12)).save(file)
    elif how == "another size":
        with Image.open(file) as image:
            mark = image.info["outzoom keyframe"]
        text = PngImagePlugin.PngInfo()
        text.add_itxt("outzoom keyframe", mark)
        Image.new("RGB", (4000, 3000)).save(file, pnginfo=text)


@pytest.mark.parametrize("how", ["cut", "empty", "one bit", "a picture from elsewhere", "another size"])
def test_a_damaged_keyframe_is_refused_by_name(kept, folder_of, how):
    damage(kept._file(2), how)
    with pytest.raises(UserError, match=r"00002\.png is damaged") as caught:
        folder_of().load(2)
    assert "delete it" in caught.value.hint


@pytest.mark.parametrize(
    "state", [b"", b"{", b"[]", b'{"schema_version": 99, "settings": {}}', b'{"a":' * 10_000, b" " * (1 << 20) + b"{}"]
)
def test_a_state_that_cannot_be_read_is_refused(kept, folder_of, state):
    (kept.path / "keyframes.json").write_bytes(state)
    with pytest.raises(UserError, match=r"damaged|another version"):
        folder_of()


def test_a_folder_of_something_else_is_left_alone(folder_of, tmp_path):
    (tmp_path / "run").mkdir()
    folder_of()  # empty: it may be used
    (tmp_path / "run" / "00000.png").write_text("mine")
    with pytest.raises(UserError, match="outzoom did not make it"):
        folder_of()
    with pytest.raises(UserError, match="outzoom did not make it"):
        remove_keyframes(tmp_path / "run")
    assert (tmp_path / "run" / "00000.png").read_text() == "mine"
    with pytest.raises(UserError, match="not a directory"):
        KeyframeFolder(tmp_path / "run" / "00000.png", (16, 12), {}, lambda i: {})


def test_a_folder_that_a_killed_run_had_only_begun_is_used(folder_of, pictures, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".partial-1-ab-keyframes.json").touch()
    folder = folder_of()
    folder.save(0, pictures[0])
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "00000.png", "keyframes.json"]


def test_a_lap_is_the_last_keyframes_own(kept, folder_of, pictures):
    assert not kept.has_lap(2)
    for index in (1, 2):
        kept.save_lap(index, 2, pictures[index])
    again = folder_of()
    assert again.has_lap(2)
    assert np.array_equal(again.load_lap(0, 2), pictures[2])  # after the last comes the first
    assert np.array_equal(again.load_lap(1, 2), pictures[1])
    again._lap_file(1).write_bytes(again._lap_file(0).read_bytes())
    with pytest.raises(UserError, match=r"lap-00001\.png is of another zoom"):
        again.load_lap(1, 2)


def test_removing_takes_the_keyframes_and_leaves_the_rest(kept, pictures):
    kept.save_lap(0, 2, pictures[0])
    (kept.path / "notes.txt").write_text("mine")
    kept.remove()
    assert [path.name for path in kept.path.iterdir()] == ["notes.txt"]
    remove_keyframes(kept.path.parent / "nowhere")
