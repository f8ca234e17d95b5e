"""Whole zooms on a real bundle: out, in, loops that close, end pictures, prompts in turn, going on after a kill."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from outzoom.runtime import Film, Motion, Painting, Prompts, UserError, film_frames, open_bundle, open_keyframes
from outzoom.runtime.film import RING
from outzoom.runtime.geometry import outside_mask, paste_centered
from outzoom.runtime.prompts import Row

FAST = Painting(steps=1, guidance=1)
MOTION = Motion(seconds=2, fps=10, zoom_rate=4.0, keyframe_every=5)  # each keyframe is half as large in the next


@pytest.fixture(scope="module")
def zoom(tiny_bundles):
    with open_bundle(tiny_bundles["onnxruntime-fp32"]) as opened:
        yield opened


@pytest.fixture
def still():
    y, x = np.mgrid[0:64, 0:64] / 63
    return np.stack([255 * x, 255 * y, 255 * (1 - x)], -1).astype(np.uint8)


@pytest.fixture
def film(still):
    return Film(still, Prompts.always("a reef"), MOTION, FAST)


@pytest.fixture
def shoot(zoom, tmp_path):
    """The frames of a film, and how many keyframes were painted for them."""

    def shoot(film, name="run", **options):
        steps = []
        keyframes = open_keyframes(tmp_path / name, zoom, film)
        shown = list(film_frames(zoom, film, keyframes, on_step=lambda: steps.append(1), **options))
        return np.array(shown), len(steps)

    return shoot


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def differences(shown):
    return np.abs(np.diff(shown.astype(int), axis=0)).mean((1, 2, 3))


def test_a_film_shows_what_the_zoom_in_memory_does(zoom, film, shoot):
    shown, painted = shoot(film)
    assert painted == 4
    assert np.array_equal(shown, list(zoom.frames(film.start, "a reef", MOTION, FAST)))


def test_a_zoom_in_is_the_reverse(film, shoot):
    outwards, painted = shoot(film)
    inwards, painted_for_it = shoot(film, "other", zoom_in=True)
    assert np.array_equal(inwards, outwards[::-1])
    assert painted_for_it == painted == 4
    again, painted_again = shoot(film, zoom_in=True)
    assert np.array_equal(again, inwards) and painted_again == 0


@pytest.mark.parametrize("closing", ["open", "loop"])
@pytest.mark.parametrize("at", [2, 3])
def test_a_killed_run_goes_on_with_the_same_result(zoom, film, shoot, tmp_path, closing, at):
    film = replace(film, loop=closing == "loop")
    whole, _ = shoot(film, "whole")
    steps = []

    def killed():
        steps.append(1)
        if len(steps) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(film_frames(zoom, film, open_keyframes(tmp_path / "run", zoom, film), on_step=killed))
    assert open_keyframes(tmp_path / "run", zoom, film).count(4) == at  # the picture, and those before this one
    resumed, painted = shoot(film)
    assert painted == 4 - (at - 1)
    assert np.array_equal(resumed, whole)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_longer_zoom_takes_over_the_keyframes_of_a_shorter_one(film, shoot):
    short, _ = shoot(film)
    longer, painted = shoot(replace(film, motion=replace(MOTION, seconds=3)))
    assert painted == 2
    assert np.array_equal(longer[: len(short)], short)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"painting": replace(FAST, seed=1)}, "seed 0 there, 1 here"),
        ({"painting": replace(FAST, steps=2)}, "steps 1 there, 2 here"),
        ({"prompts": Prompts.always("a sea")}, '"a reef" there, "a sea" here'),
        ({"motion": replace(MOTION, zoom_rate=3.0)}, "scale"),
        ({"start": np.zeros((64, 64, 3), np.uint8)}, "another picture"),
        ({"loop": True}, "another end picture|end picture null there"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_keyframes_of_another_film_are_refused(film, shoot, changes, words):
    shoot(film)
    with pytest.raises(UserError, match=words):
        shoot(replace(film, **changes))


def test_prompts_take_over_at_their_keyframe(film, shoot, tmp_path):
    shoot(film, "reef")
    shoot(replace(film, prompts=Prompts((Row(0, "a reef"), Row(3, "a sea")))), "both")
    shoot(replace(film, prompts=Prompts((Row(0, "a reef"), Row(1.0, "a sea")), in_seconds=True)), "timed")
    reef, both, timed = (files(tmp_path / name) for name in ("reef", "both", "timed"))
    equal = {name for name in reef if reef[name] == both[name]}
    assert equal == {".lock", "keyframes.json", "00000.png", "00001.png", "00002.png"}
    assert timed == both  # at one second keyframe 2 fills the frame, and the edge of keyframe 3 comes into view


def test_a_loop_has_no_jump_where_it_closes(film, shoot):
    shown, painted = shoot(replace(film, loop=True))
    assert (len(shown), painted) == (20, 4)
    between = differences(shown)
    (joint,) = differences(shown[[-1, 0]])
    assert joint <= between.max()
    assert joint <= 1.5 * np.median(between)


def test_a_loop_is_a_picture_that_holds_itself(zoom, film, shoot):
    shown, _ = shoot(replace(film, loop=True))
    first = shown[0]
    edge = outside_mask((64, 64), 0.5 + RING / 2)
    assert np.array_equal(first[edge], film.start[edge])
    whole_lap = 0.5**4
    inside = ~outside_mask((64, 64), whole_lap, margin_px=1)  # where the second lap shows the picture again
    expected = paste_centered(first, first, whole_lap)
    assert np.abs(first[inside].astype(int) - expected[inside]).max() <= 24  # of four pixels, resampled four times
    assert not np.array_equal(first[inside], film.start[inside])


def test_an_end_picture_is_the_last_frame_with_the_zoom_in_its_centre(zoom, film, shoot, still):
    end = np.ascontiguousarray(still[::-1, :, ::-1])
    film = replace(film, end=end, motion=replace(MOTION, seconds=2.1))
    shown, painted = shoot(film)
    plain, _ = shoot(replace(film, end=None), "plain")
    assert (len(shown), painted) == (21, 4)
    last, edge, inside = shown[-1], outside_mask((64, 64), 0.75), ~outside_mask((64, 64), 0.5, zoom.feather_px)
    assert np.array_equal(last[edge], end[edge])
    assert np.array_equal(last[inside], paste_centered(end, plain[15], 0.5)[inside])
    ring = outside_mask((64, 64), 0.5) & ~edge
    assert not np.array_equal(last[ring], end[ring])
    assert np.array_equal(shown[:16], plain[:16])


def test_a_loop_with_an_end_picture_is_refused(film):
    with pytest.raises(UserError, match="ends in the picture it began with"):
        replace(film, loop=True, end=film.start)


def test_pictures_of_another_size_are_refused(film, shoot):
    with pytest.raises(UserError, match="64x64"):
        shoot(replace(film, end=np.zeros((32, 32, 3), np.uint8)))


def test_a_keyframe_that_was_lost_is_painted_again(film, shoot, tmp_path):
    whole, _ = shoot(film)
    before = files(tmp_path / "run")
    (tmp_path / "run" / "00002.png").unlink()
    again, painted = shoot(film)
    assert painted == 3
    assert np.array_equal(again, whole)
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("loop", [False, True])
def test_memory_holds_three_keyframes_however_many_there_are(zoom, film, tmp_path, monkeypatch, loop):
    film = replace(film, motion=replace(MOTION, seconds=6), loop=loop)
    keyframes = open_keyframes(tmp_path / "run", zoom, film)
    made = []

    def watched(function):
        def call(*arguments, **options):
            picture = function(*arguments, **options)
            made.append(weakref.ref(picture))
            return picture

        return call

    for name in ("load", "load_lap"):
        monkeypatch.setattr(keyframes, name, watched(getattr(keyframes, name)))
    monkeypatch.setattr(zoom, "keyframe_around", watched(zoom.keyframe_around))
    for zoom_in in (False, True):
        for _ in film_frames(zoom, film, keyframes, zoom_in):
            assert sum(reference() is not None for reference in made) <= 3
    assert len(made) >= 2 * 11
