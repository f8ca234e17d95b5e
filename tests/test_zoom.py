"""The zoom loop on real bundles: what is pasted, what is painted, and when."""

import numpy as np
import pytest

from outzoom.runtime import Motion, Painting, UserError, open_bundle
from outzoom.runtime.geometry import outside_mask, paste_centered

FAST = Painting(steps=1, guidance=1)


@pytest.fixture(scope="module")
def zoom(tiny_bundles):
    with open_bundle(tiny_bundles["onnxruntime-fp32"]) as opened:
        yield opened


@pytest.fixture
def still():
    y, x = np.mgrid[0:64, 0:64] / 63
    return np.stack([255 * x, 255 * y, 255 * (1 - x)], -1).astype(np.uint8)


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("frames", [1, 2, 8, 15])
def test_as_many_frames_come_and_as_many_keyframes_are_painted_as_the_motion_says(zoom, still, every, frames):
    motion = Motion(seconds=frames / 10, fps=10, zoom_rate=1.5 ** (10 / every), keyframe_every=every)
    steps = []
    shown = list(zoom.frames(still, "", motion, FAST, on_step=lambda: steps.append(1)))
    assert len(shown) == frames == motion.frame_count
    assert len(steps) == motion.painted_count
    assert np.array_equal(shown[0], still)


def test_frames_at_keyframe_times_are_the_keyframes(zoom, still):
    motion = Motion(seconds=1.1, fps=10, zoom_rate=4.0, keyframe_every=5)
    frames = list(zoom.frames(still, "", motion, FAST))
    keyframes = zoom.keyframes(still, "", motion.scale, FAST)
    for i in (0, 5, 10):
        assert np.array_equal(frames[i], next(keyframes)), f"frame {i}"


def test_the_known_centre_is_pasted_and_not_repainted(zoom, still):
    keyframes = zoom.keyframes(still, "", 0.5, FAST)
    first, second = next(keyframes), next(keyframes)
    inside = ~outside_mask((64, 64), 0.5, margin_px=zoom.feather_px)
    expected = paste_centered(np.zeros_like(first), first, 0.5)
    assert np.array_equal(second[inside], expected[inside])
    assert not np.array_equal(second[~inside], expected[~inside])


def test_each_keyframe_is_painted_from_noise_of_its_own(zoom, still):
    flat = np.full_like(still, 128)
    keyframes = zoom.keyframes(flat, "", 0.5, FAST)
    _, second, third = next(keyframes), next(keyframes), next(keyframes)
    border = outside_mask((64, 64), 0.5)
    assert not np.array_equal(second[border], third[border])


def test_keyframes_are_painted_when_they_are_needed_and_not_before(zoom, still):
    steps = []
    motion = Motion(seconds=1, fps=10, zoom_rate=4.0, keyframe_every=5)
    frames = zoom.frames(still, "", motion, FAST, on_step=lambda: steps.append(1))
    next(frames)
    assert not steps
    next(frames)
    assert len(steps) == 1


def test_a_picture_of_another_size_is_refused_with_the_size_wanted(zoom):
    with pytest.raises(UserError, match="64x64"):
        next(zoom.frames(np.zeros((32, 64, 3), np.uint8), ""))


def test_engines_load_again_after_close(tiny_bundles, still):
    zoom = open_bundle(tiny_bundles["onnxruntime-fp32"])
    motion = Motion(seconds=0.2, fps=10, zoom_rate=4.0, keyframe_every=5)
    before = list(zoom.frames(still, "", motion, FAST))
    zoom.close()
    after = list(zoom.frames(still, "", motion, FAST))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    "values",
    [{"seconds": 0}, {"seconds": float("nan")}, {"seconds": 1e9}, {"fps": 0}, {"zoom_rate": 1}, {"keyframe_every": 0}],
    ids=lambda values: "-".join(values),
)
def test_a_motion_out_of_range_is_refused(values):
    with pytest.raises(UserError):
        Motion(**values)
