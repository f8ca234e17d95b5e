"""The zoom's geometry: exact to a fraction of a pixel, of constant speed, and without jumps or seams."""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from outzoom.runtime.errors import UserError
from outzoom.runtime.geometry import (
    MAX_SCALE,
    MIN_SCALE,
    in_between,
    keyframe_scale,
    outside_mask,
    paste_centered,
)

Picture = NDArray[np.uint8]
World = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

scales = st.floats(0.25, 0.97)
times = st.floats(0, 1)
lengths = st.integers(1, 40)


def grey(values: list[list[int]]) -> Picture:
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=2)


def plain(width: int, height: int, colour: object) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def noise(width: int, height: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def render(world: World, pixels: int, half_width: float, samples: int = 4) -> Picture:
    """A square camera picture of a world: the mean of samples x samples points in each pixel."""
    centres = ((np.arange(pixels * samples) + 0.5) / (pixels * samples) * 2 - 1) * half_width
    points = world(centres[None, :], centres[:, None])
    return np.rint(points.reshape(pixels, samples, pixels, samples, 3).mean((1, 3))).astype(np.uint8)


def spirals(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth colours that look alike at every zoom, so that equal motion means an equal change per frame."""
    u, angle = np.log(np.hypot(x, y) + 1e-9), np.arctan2(y, x)
    red, green = np.sin(6 * u + 3 * angle), np.sin(9 * u - 5 * angle + 1)
    return 127.5 + 110 * np.stack([red, green, np.sin(14 * u) * np.sin(8 * angle)], -1)


def keyframes(world: World, pixels: int, scale: float, count: int) -> list[Picture]:
    """Real pictures of ever larger views."""
    return [render(world, pixels, scale**-index) for index in range(count)]


def painted(keys: list[Picture], scale: float) -> list[Picture]:
    """As the zoom loop makes them: each keyframe holds the one before, shrunk, and only its border is new."""
    chain = keys[:1]
    for key in keys[1:]:
        chain.append(paste_centered(key, chain[-1], scale, feather_px=6))
    return chain


def film(keys: list[Picture], scale: float, every: int, feather_px: float = 12) -> Iterator[Picture]:
    for inner, outer in pairwise(keys):
        for step in range(every):
            yield in_between(inner, outer, scale, step / every, feather_px)
    yield keys[-1]


# --- by hand


def test_the_mask_is_the_border_around_the_shrunk_picture() -> None:
    assert outside_mask((4, 4), 0.5).astype(int).tolist() == [
        [1, 1, 1, 1],
        [1, 0, 0, 1],
        [1, 0, 0, 1],
        [1, 1, 1, 1],
    ]


def test_the_mask_takes_size_as_width_and_height() -> None:
    assert outside_mask((6, 2), 0.5).shape == (2, 6)


def test_pixels_covered_in_part_are_outside() -> None:
    """Half of 5 pixels reaches from 1.25 to 3.75: only pixel 2 is covered fully."""
    assert outside_mask((5, 1), 0.5).all()  # of 1 row, half is covered
    assert (~outside_mask((5, 5), 0.5)).nonzero() == (2, 2)


def test_the_margin_reaches_into_the_picture() -> None:
    assert (~outside_mask((8, 8), 0.75)).sum() == 36
    assert (~outside_mask((8, 8), 0.75, margin_px=1)).sum() == 16
    assert (~outside_mask((8, 8), 0.75, margin_px=0.5)).sum() == 16
    assert outside_mask((8, 8), 0.75, margin_px=99).all()


def test_pasting_fills_the_centre_and_leaves_the_canvas_as_it_was() -> None:
    canvas = plain(4, 4, 0)
    pasted = paste_centered(canvas, plain(4, 4, 200), 0.5)
    expected = grey([[0, 0, 0, 0], [0, 200, 200, 0], [0, 200, 200, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(pasted, expected)
    assert not canvas.any()


def test_the_feather_rises_linearly_inside_the_picture() -> None:
    """Pixel centres lie 0.5, 1.5 and 2.5 from the edge: a feather of 2 gives 1/4, 3/4 and 1."""
    pasted = paste_centered(plain(8, 8, 0), plain(8, 8, 200), 1.0, feather_px=2)
    assert pasted[4, :, 0].tolist() == [50, 150, 200, 200, 200, 200, 150, 50]
    assert pasted[:, 4, 0].tolist() == [50, 150, 200, 200, 200, 200, 150, 50]
    assert pasted[0, 0, 0] == 50


def test_the_weight_mixes() -> None:
    assert (paste_centered(plain(4, 4, 100), plain(4, 4, 200), 1.0, weight=0.4) == 140).all()
    assert (paste_centered(plain(4, 4, 100), plain(4, 4, 200), 1.0, weight=0.0) == 100).all()


def test_a_picture_smaller_than_a_pixel_changes_nothing() -> None:
    assert not paste_centered(plain(4, 4, 0), plain(4, 4, 200), 0.2).any()


def test_impossible_values_are_refused() -> None:
    picture = plain(4, 4, 0)
    for scale in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="scale"):
            paste_centered(picture, picture, scale)
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="t in"):
            in_between(picture, picture, 0.5, t)
    with pytest.raises(ValueError, match="one shape"):
        in_between(picture, plain(5, 4, 0), 0.5, 0.5)
    for scale in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="scale"):
            in_between(picture, picture, scale, 0.5)


# --- properties of pasting


@settings(deadline=None)
@given(width=lengths, height=lengths, scale=st.floats(0.05, 1))
def test_pasting_changes_exactly_what_the_mask_leaves(width: int, height: int, scale: float) -> None:
    pasted = paste_centered(plain(width, height, 0), plain(width, height, 200), scale)
    np.testing.assert_array_equal(pasted[..., 0] == 0, outside_mask((width, height), scale))


@settings(deadline=None)
@given(width=lengths, height=lengths, scale=st.floats(0.05, 1))
def test_pasting_is_symmetric(width: int, height: int, scale: float) -> None:
    canvas, picture = noise(width, height, 1), noise(width, height, 2)
    pasted = paste_centered(canvas, picture, scale, 3)
    flipped = paste_centered(canvas[::-1, ::-1], picture[::-1, ::-1], scale, 3)
    np.testing.assert_allclose(pasted.astype(int), flipped[::-1, ::-1].astype(int), atol=1)  # rounding


def test_a_picture_shrunk_to_whole_pixels_is_pillows_own() -> None:
    picture = noise(64, 48)
    pasted = paste_centered(plain(64, 48, 0), picture, 0.5)
    shrunk = np.array(Image.fromarray(picture).resize((32, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pasted[12:36, 16:48], shrunk)


def ramp(pixels: int, slope: float) -> Picture:
    """A horizontal ramp, `slope` levels per pixel, 128 in the centre."""
    row = 128 + slope * (np.arange(pixels) + 0.5 - pixels / 2)
    return np.repeat(np.rint(np.tile(row, (pixels, 1)))[..., None], 3, axis=2).astype(np.uint8)


@settings(deadline=None)
@given(scale=scales)
def test_pasting_puts_every_pixel_where_it_belongs(scale: float) -> None:
    """A ramp of 1 level per pixel becomes one of 1/scale, through 128 in the centre: half a level is half a
    pixel of the picture. At its edge the filter is cut off, which moves it inwards by under a pixel."""
    pasted = paste_centered(plain(129, 129, 0), ramp(129, 1), scale)[64, :, 0].astype(float)
    inside = ~outside_mask((129, 129), scale)[64]
    expected = 128 + (np.arange(129) - 64) / scale
    np.testing.assert_allclose(pasted[inside][3:-3], expected[inside][3:-3], atol=1.01)  # two roundings
    np.testing.assert_allclose(pasted[inside], expected[inside], atol=2)


# --- properties of the frames between


@settings(deadline=None)
@given(
    width=lengths,
    height=lengths,
    scale=scales,
    t=times,
    feather_px=st.floats(0, 50),
    colour=st.integers(0, 255),
)
def test_a_constant_colour_stays_constant(
    width: int, height: int, scale: float, t: float, feather_px: float, colour: int
) -> None:
    picture = plain(width, height, (colour, 255 - colour, 7))
    np.testing.assert_array_equal(in_between(picture, picture, scale, t, feather_px), picture)


@settings(deadline=None)
@given(width=lengths, height=lengths, scale=scales, feather_px=st.floats(0, 50))
def test_the_ends_are_the_keyframes_exactly(width: int, height: int, scale: float, feather_px: float) -> None:
    inner, outer = noise(width, height, 1), noise(width, height, 2)
    np.testing.assert_array_equal(in_between(inner, outer, scale, 0.0, feather_px), inner)
    np.testing.assert_array_equal(in_between(inner, outer, scale, 1.0, feather_px), outer)


@settings(deadline=None)
@given(scale=scales, feather_px=st.floats(0, 20))
def test_the_outer_keyframe_is_reached_without_a_step(scale: float, feather_px: float) -> None:
    """Even if the two have nothing in common."""
    inner, outer = noise(32, 32, 1), noise(32, 32, 2)
    near = in_between(inner, outer, scale, 1 - 1e-5, feather_px)
    np.testing.assert_allclose(near.astype(int), outer.astype(int), atol=1)


@settings(deadline=None)
@given(scale=scales, t=times, feather_px=st.floats(0, 20))
def test_a_ramp_stays_a_ramp_across_the_pasted_edge(scale: float, t: float, feather_px: float) -> None:
    inner, outer = ramp(97, 1.2 * scale), ramp(97, 1.2)
    frame = in_between(inner, outer, scale, t, feather_px)[48, :, 0].astype(float)
    expected = 128 + 1.2 * scale ** (1 - t) * (np.arange(97) - 48)
    np.testing.assert_allclose(frame, expected, atol=2)  # roundings, and filters cut off at edges


@settings(deadline=None)
@given(width=lengths, height=lengths, scale=scales, t=st.floats(0, 0.999), feather_px=st.floats(0, 30))
def test_only_the_visible_part_of_the_outer_keyframe_is_left_out(
    width: int, height: int, scale: float, t: float, feather_px: float
) -> None:
    """Parity with the plain way: the whole view resized, the picture pasted over it.

    Within 2 levels: Pillow resizes across or down first, whichever is cheaper for a region, and rounds in
    between. It clips there too, hence noise whose overshoots stay within 0 to 255.
    """
    inner, outer = noise(width, height, 1), noise(width, height, 2) // 2 + 64
    half = scale ** (1 - t) / 2
    box = (width * (0.5 - half), height * (0.5 - half), width * (0.5 + half), height * (0.5 + half))
    view = Image.fromarray(outer).resize((width, height), Image.Resampling.BICUBIC, box)
    x = max(0.0, 2 * t - 1)
    expected = paste_centered(np.array(view), inner, scale**t, t * feather_px, 1 - x * x * (3 - 2 * x))
    frame = in_between(inner, outer, scale, t, feather_px)
    np.testing.assert_allclose(frame.astype(int), expected.astype(int), atol=2)


# --- the zoom as it is seen


@pytest.mark.parametrize("chain", ["real", "painted"])
@pytest.mark.parametrize(("scale", "count"), [(0.6, 5), (0.75, 8), (0.9, 20)])
def test_the_apparent_speed_is_constant(chain: str, scale: float, count: int) -> None:
    """The radius of a disc, from its area, shrinks by one factor per frame, also across keyframes.

    Within 0.05 pixels of the radius that constant speed gives (measured: 0.026), from 82 to 11 pixels, and
    each step of log radius within 0.003 (measured: 0.0018).
    """

    def disc(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(255 * np.clip((0.85 - np.hypot(x, y)) * 60 + 0.5, 0, 1)[..., None], 3, -1)

    every = 7
    keys = keyframes(disc, 192, scale, count)
    frames = list(film(keys if chain == "real" else painted(keys, scale), scale, every))
    radius_px = np.array([np.sqrt(frame[..., 0].sum() / 255 / np.pi) for frame in frames])
    np.testing.assert_allclose(radius_px, 0.85 * 96 * scale ** (np.arange(len(frames)) / every), atol=0.05)
    np.testing.assert_allclose(np.diff(np.log(radius_px)), np.log(scale) / every, atol=0.003)


def test_a_dot_moves_inwards_on_a_straight_line_at_constant_speed() -> None:
    """The centre of mass of an off-centre dot, within 0.05 pixels in every frame: no jitter."""

    def dot(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        light = 255 * np.exp(-((x - 0.6) ** 2 + (y + 0.35) ** 2) / 0.01)
        return np.repeat(light[..., None], 3, -1)

    scale, every = 0.8, 5
    rows, columns = np.mgrid[0:160, 0:160] + 0.5 - 80
    for index, frame in enumerate(film(keyframes(dot, 160, scale, 5), scale, every)):
        light = frame[..., 0].astype(float)
        where = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        expected = np.array([0.6, -0.35]) * 80 * scale ** (index / every)
        np.testing.assert_allclose(where, expected, atol=0.05)


@pytest.mark.parametrize("chain", ["real", "painted"])
@pytest.mark.parametrize("scale", [0.6, 0.8, 0.95])
def test_no_frame_jumps_at_a_keyframe(chain: str, scale: float) -> None:
    every = 5
    keys = keyframes(spirals, 128, scale, 4)
    frames = [frame.astype(float) for frame in film(keys if chain == "real" else painted(keys, scale), scale, every)]
    change = np.array([np.abs(after - before).mean() for before, after in pairwise(frames)])
    for boundary in (
        every,
        2 * every,
    ):  # change[boundary - 1] leads to the keyframe, change[boundary] away from it
        around = np.delete(change[boundary - 3 : boundary + 3], [2, 3])
        assert change[boundary - 1 : boundary + 1].max() < 1.1 * np.median(around)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_no_seam_shows_where_the_picture_is_the_shrunk_content(t: float) -> None:
    """Steps between neighbouring pixels across the pasted edge are like those just beside it."""
    scale, size = 0.7, 128
    inner, outer = keyframes(spirals, size, scale, 2)
    frame = in_between(inner, outer, scale, t, feather_px=8).astype(float)
    edge = (~outside_mask((size, size), scale**t))[size // 2].argmax()
    across = np.abs(np.diff(frame, axis=1)).mean(axis=(0, 2))  # across[i]: from column i to i + 1
    beside = np.r_[across[max(edge - 6, 0) : edge - 1], across[edge + 1 : edge + 6]]
    assert across[edge - 1] < 1.1 * beside.max()
    if t < 0.5:  # while it is pasted fully, the reference is real content drawn at that zoom
        real = render(spirals, size, scale**-t).astype(float)
        difference = np.abs(frame - real)[:, edge - 2 : edge + 2].mean()
        assert difference < 1


# --- keyframe_scale


def test_the_scale_follows_from_the_options() -> None:
    assert keyframe_scale(2.0, 30, 30) == 0.5
    assert keyframe_scale(1.44, 15, 30) == pytest.approx(1 / 1.2)


@given(
    zoom_rate=st.floats(1.0001, 1e6),
    keyframe_every=st.integers(1, 1000),
    fps=st.floats(1, 240),
)
def test_the_scale_is_in_range_or_the_advice_brings_it_there(zoom_rate: float, keyframe_every: int, fps: float) -> None:
    try:
        assert MIN_SCALE <= keyframe_scale(zoom_rate, keyframe_every, fps) <= MAX_SCALE
    except UserError as error:
        every = re.search(r"--keyframe-every to (\d+)", error.hint)
        rate = re.search(r"--zoom-rate to ([0-9.e+]+)", error.hint)
        assert every or rate
        if every:
            assert ("raise" in error.hint) == (int(every[1]) > keyframe_every)
            if int(every[1]) <= 100_000:
                assert MIN_SCALE <= keyframe_scale(zoom_rate, int(every[1]), fps) <= MAX_SCALE
        if rate:
            assert ("raise" in error.hint) == (float(rate[1]) > zoom_rate)
            assert MIN_SCALE <= keyframe_scale(float(rate[1]), keyframe_every, fps) <= MAX_SCALE


def test_the_advice_reads_well() -> None:
    with pytest.raises(UserError) as caught:
        keyframe_scale(2.0, 90, 30)
    assert str(caught.value).startswith("--zoom-rate 2 with --keyframe-every 90 at --fps 30 shrinks each keyframe")
    assert caught.value.hint == "lower --keyframe-every to 59 or lower --zoom-rate to 1.5874"


@pytest.mark.parametrize(
    ("zoom_rate", "keyframe_every", "fps", "option"),
    [
        (1.0, 5, 30, "--zoom-rate"),
        (0.5, 5, 30, "--zoom-rate"),
        (float("nan"), 5, 30, "--zoom-rate"),
        (float("inf"), 5, 30, "--zoom-rate"),
        (2.0, 0, 30, "--keyframe-every"),
        (2.0, 10**400, 30, "--keyframe-every"),
        (2.0, 5, 0, "--fps"),
        (2.0, 5, float("nan"), "--fps"),
        (2.0, 5, 1000, "--fps"),
    ],
)
def test_values_without_sense_are_the_users_mistake(
    zoom_rate: float, keyframe_every: int, fps: float, option: str
) -> None:
    with pytest.raises(UserError, match=f"^{option} must be") as caught:
        keyframe_scale(zoom_rate, keyframe_every, fps)
    assert caught.value.hint
