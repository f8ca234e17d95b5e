"""The border of a video: the live frame stays what it is, and what is around it moves with the camera."""

from itertools import pairwise

import numpy as np
import pytest

from outzoom.runtime import Painting, Surround, UserError, VideoZoom, open_bundle
from outzoom.runtime.border import BorderRenderer, Painted, layout_for
from outzoom.runtime.camera import Camera, CameraMotion
from outzoom.runtime.memory import Memory

cv2 = pytest.importorskip("cv2")
SIZE, SIDE = (128, 128), 96


def world(seed: int = 0, side: int = 400) -> np.ndarray:
    """A large smooth picture with something to follow everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + (blurred - 128) * 6, 0, 255).astype(np.uint8)


def view(picture: np.ndarray, x: float, y: float, size=SIZE, zoom: float = 1.0, degrees: float = 0.0) -> np.ndarray:
    """What a camera sees of it: centred at (x, y) from the middle, turned, `zoom` times as large."""
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / zoom
    middle = (np.array(picture.shape[1::-1]) - 1) / 2 + [x, y]
    shift = middle - matrix @ ((np.array(size) - 1) / 2)
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, np.column_stack([matrix, shift]), size, flags=how)


class TruePainter:
    """Paints what is really there, in other colours if asked, and remembers what it was asked to paint."""

    size = SIZE

    def __init__(self, frames, offset: int = 0) -> None:
        self.frames, self.offset, self.masks, self.pictures = frames, offset, [], []

    def paint(self, picture, mask, prompt, painting, *, on_step=None):
        centre = picture[16:-16, 16:-16]
        distances = [np.abs(frame[16:-16, 16:-16].astype(int) - centre).mean() for frame in self.frames]
        self.masks.append(mask)
        self.pictures.append(picture)
        return np.clip(self.frames[int(np.argmin(distances))].astype(int) + self.offset, 0, 255).astype(np.uint8)


def centres(frames):
    return [np.ascontiguousarray(frame[16:-16, 16:-16]) for frame in frames]


def psnr_db(one, other) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9)))


BORDER = np.ones(SIZE[::-1], bool)
BORDER[16:-16, 16:-16] = False
INNER = (slice(20, -20), slice(20, -20))  # of the live frame, what its feather leaves alone


# the camera


def test_motions_are_composed_and_undone_by_hand():
    quarter = CameraMotion(0.0, 1.0, 3.0, 0.0)  # (x, y) -> (-y + 3, x)
    assert quarter.then(quarter) == CameraMotion(-1.0, 0.0, 3.0, 3.0)  # (1, 0) -> (3, 1) -> (2, 3)
    there = CameraMotion(0.9, 0.2, 4.0, -7.0)
    back = there.then(there.inverse())
    np.testing.assert_allclose([back.a, back.b, back.dx, back.dy], [1, 0, 0, 0], atol=1e-12)


def test_a_motions_matrix_leaves_the_centre_of_even_sizes_where_it_is():
    np.testing.assert_allclose(CameraMotion(2.0).matrix(4, 2) @ [1.5, 0.5, 1], [1.5, 0.5])


def test_the_reach_is_that_of_the_corner_that_moves_most():
    assert CameraMotion(dx=3.0, dy=4.0).reach_px(10, 10) == pytest.approx(5)
    assert CameraMotion(a=1.1).reach_px(6, 8) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("speed", "zoom", "degrees"), [((2.0, 0.5), 1.0, 0.0), ((0, 0), 0.99, 0.0), ((0.5, -1), 1.005, 0.5), ((6, 0), 1, 0)]
)
@pytest.mark.parametrize("side", [96, 384])
def test_the_camera_is_followed_to_a_fraction_of_a_pixel(side, speed, zoom, degrees):
    """Over 8 frames; half a pixel of 96, a corner's way, is what flow at this resolution tells."""
    scene, camera, found = world(side=800), Camera(), CameraMotion()
    for index in range(9):
        place = (speed[0] * index, speed[1] * index)
        frame = view(scene, *place, (side, side), zoom**index, degrees * index)
        found = found.then(camera.step(frame).motion)
    turn, size = np.deg2rad(-degrees * 8), zoom**8
    a, b = size * np.cos(turn), size * np.sin(turn)
    x, y = -8 * speed[0], -8 * speed[1]
    true = CameraMotion(a, b, a * x - b * y, b * x + a * y)
    assert true.inverse().then(found).reach_px(side, side) < 0.5


def test_what_moves_by_itself_in_the_middle_is_not_taken_for_the_camera():
    scene, camera, found = world(), Camera(), CameraMotion()
    for index in range(6):
        frame = view(scene, index, 0, (SIDE, SIDE))
        frame[30:66, 20 + 5 * index : 50 + 5 * index] = (200, 30, 30)
        found = found.then(camera.step(frame).motion)
    assert found.dx == pytest.approx(-5, abs=0.3)
    assert abs(found.dy) < 0.3


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_frames_do_not_move(level):
    camera = Camera()
    for _ in range(3):
        step = camera.step(np.full((SIDE, SIDE, 3), level, np.uint8))
        assert step.motion == CameraMotion()
        assert not step.is_cut


def test_a_cut_is_told_from_motion_and_from_light():
    scene, camera = world(), Camera()
    steps = [camera.step(view(scene, 4 * index, 0, (SIDE, SIDE))) for index in range(5)]
    dark = (view(scene, 20, 0, (SIDE, SIDE)) * 0.5).astype(np.uint8)
    steps.append(camera.step(dark))
    assert not any(step.is_cut for step in steps)
    assert camera.step(view(world(seed=1), 0, 0, (SIDE, SIDE))).is_cut
    assert not camera.step(view(world(seed=1), 1, 0, (SIDE, SIDE))).is_cut


# where the live frame lies


@pytest.mark.parametrize(
    ("size", "scale", "live"),
    [((128, 128), 0.75, (96, 96)), ((512, 512), 0.75, (384, 384)), ((768, 512), 0.5, (384, 256)),
     ((512, 512), 0.97, (496, 496)), ((64, 64), 0.9, (48, 48)), ((64, 64), 0.25, (16, 16))],
)  # fmt: skip
def test_the_live_frame_lies_on_the_grid_of_latents(size, scale, live):
    layout = layout_for(size, scale)
    assert layout.live == live
    assert all(side % 8 == 0 for side in layout.corner)


@pytest.mark.parametrize("scale", [0.0, 0.2, 0.99, 1.0, float("nan")])
def test_scales_without_sense_are_refused(scale):
    with pytest.raises(UserError, match="--scale"):
        layout_for(SIZE, scale)


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.6, 0.9, 0.97])
def test_the_strips_cover_the_border_once(scale):
    layout, count = layout_for((512, 384), scale), np.zeros((384, 512), int)
    for strip in layout.strips:
        assert count[strip].size
        count[strip] += 1
    assert count.max() == 1
    count[layout.centre] = 1
    assert count.min() == 1


# the border


def test_colours_are_matched_at_the_seam():
    """A border that is 20 levels too light comes down to the live frame's, and the live frame stays as it is."""
    renderer = BorderRenderer(layout_for(SIZE, 0.75))
    live = np.full((SIDE, SIDE, 3), 100, np.uint8)
    canvas = renderer.canvas(np.full((128, 128, 3), 120, np.uint8), live)
    np.testing.assert_allclose(canvas, 100, atol=1)


def test_far_from_the_seam_colours_are_matched_as_well():
    """The Gaussian ends 160 pixels out; the corner of a border of 192 is farther."""
    renderer = BorderRenderer(layout_for((512, 512), 0.25))
    live = np.full((128, 128, 3), 100, np.uint8)
    np.testing.assert_allclose(renderer.canvas(np.full((512, 512, 3), 130, np.uint8), live), 100, atol=1)


def test_something_bright_at_the_seam_does_not_colour_the_whole_border():
    renderer = BorderRenderer(layout_for(SIZE, 0.75))
    live = np.full((SIDE, SIDE, 3), 100, np.uint8)
    live[40:56, :16] = 255
    canvas = renderer.canvas(np.full((128, 128, 3), 100, np.uint8), live)
    assert canvas[:16].mean() < 104
    assert canvas[60:68, :8].mean() < 125


def test_a_canvas_moves_with_the_camera():
    scene = world()
    now, later = view(scene, 0, 0), view(scene, 5.5, -2.25)
    renderer = BorderRenderer(layout_for(SIZE, 0.75))
    motion = CameraMotion(dx=-5.5, dy=2.25)
    (live,) = centres([later])
    frame = renderer.frame(live, [Painted(now, motion)])
    reached = BORDER.copy()
    reached[:, -8:] = reached[:6] = False  # which the canvas did not show
    assert psnr_db(frame[reached], later[reached]) > 35
    np.testing.assert_array_equal(frame[INNER], later[INNER])


def test_of_two_canvases_each_serves_where_the_other_does_not_reach():
    scene = world()
    before, now, after = (view(scene, x, 0) for x in (-8, 0, 8))
    renderer = BorderRenderer(layout_for(SIZE, 0.75))
    sources = [Painted(before, CameraMotion(dx=-8), 0.5), Painted(after, CameraMotion(dx=8), 0.5)]
    frame = renderer.frame(centres([now])[0], sources)
    assert psnr_db(frame[BORDER], now[BORDER]) > 30


# what was seen


def test_what_left_the_frame_is_known_and_the_rest_is_not():
    """The camera moves 10 pixels to the right: 10 columns on the left are known, and truly."""
    scene = world()
    first, second = view(scene, 0, 0), view(scene, 10, 0)
    memory = Memory(layout_for(SIZE, 0.75))
    canvas = first.copy()
    known = memory.known(centres([first])[0])
    assert np.array_equal(known.mask, BORDER)
    memory.remember(canvas, known)
    memory.move(CameraMotion(dx=-10))
    known = memory.known(centres([second])[0])
    assert not known.mask[20:-20, 7:16].any()
    assert known.mask[:, :6].all()
    assert known.mask[:, -16:].all()
    seen = ~known.mask & BORDER
    assert psnr_db(known.canvas[seen], second[seen]) > 35
    assert not known.canvas[known.mask].any()


def test_what_does_not_match_is_forgotten():
    scene = world()
    memory = Memory(layout_for(SIZE, 0.75))
    live = centres([view(scene, 0, 0)])[0]
    memory.remember(view(scene, 0, 0), memory.known(live))
    memory.move(CameraMotion(dx=10))  # which is wrong
    known = memory.known(centres([view(scene, 10, 0)])[0])
    assert np.array_equal(known.mask, BORDER)


# the whole


@pytest.mark.parametrize("look_ahead", [True, False])
@pytest.mark.parametrize("every", [1, 2, 5, 50])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_each_frame_comes_once_with_itself_in_the_centre(count, every, look_ahead):
    frames = [view(world(), 2 * index, 0) for index in range(count)]
    zoom = VideoZoom(TruePainter(frames), Surround(0.75, every, look_ahead))
    shown = list(zoom.frames(centres(frames), ""))
    assert len(shown) == count
    assert zoom.painted_count == -(-count // every)
    for frame, truth in zip(shown, frames, strict=True):
        np.testing.assert_array_equal(frame[INNER], truth[INNER])


@pytest.mark.parametrize("look_ahead", [True, False])
def test_a_true_border_stays_true_between_the_keyframes(look_ahead):
    frames = [view(world(), 1.5 * index, np.sin(index), zoom=1 + 0.002 * index) for index in range(21)]
    zoom = VideoZoom(TruePainter(frames), Surround(0.75, 10, look_ahead))
    worst = min(
        psnr_db(frame[BORDER], truth[BORDER])
        for frame, truth in zip(zoom.frames(centres(frames), ""), frames, strict=True)
    )
    unmoved = psnr_db(frames[0][BORDER], frames[9][BORDER])
    assert worst > unmoved + 5
    assert worst > (26 if look_ahead else 19)  # a live border knows nothing of what comes in


def test_no_border_jumps_at_a_keyframe():
    """Painted 15 levels too light each time, colours are matched: steps are as small as those between."""
    frames = [view(world(), 0.5 * index, 0) for index in range(16)]
    zoom = VideoZoom(TruePainter(frames, offset=15), Surround(0.75, 5))
    shown = list(zoom.frames(centres(frames), ""))
    steps = [np.abs(a[BORDER].astype(float) - b[BORDER]).mean() for a, b in pairwise(shown)]
    true_steps = [np.abs(a[BORDER].astype(float) - b[BORDER]).mean() for a, b in pairwise(frames)]
    assert max(steps) < 1.6 * max(true_steps)


def test_a_seam_on_a_tripod_is_the_same_on_keyframes_and_between():
    """The edge fades into what was painted, also where a canvas is shown a second time."""
    frames = [view(world(), 0, 0)] * 7
    shown = list(VideoZoom(TruePainter(frames, offset=40), Surround(0.75, 5)).frames(centres(frames), ""))
    for frame in shown[1:]:
        assert np.abs(frame.astype(int) - shown[0]).max() <= 2


def test_a_live_frame_fades_into_what_was_painted_in_its_place():
    layout = layout_for((512, 512), 0.75)
    renderer, live = BorderRenderer(layout), np.full((384, 384, 3), 100, np.uint8)
    live[:, ::2] = 110  # stripes, which the painting lacks
    canvas = renderer.canvas(np.full((512, 512, 3), 105, np.uint8), live)
    middle = renderer.pasted(canvas, live)[256, 64:88, 0].astype(int)
    contrast = np.abs(np.diff(middle))
    assert contrast[0] <= 2  # at the seam hardly to be seen
    assert contrast[8:].min() == 10  # and whole after 8 pixels
    assert np.ptp(canvas[256, 64:71, 0].astype(int)) <= 1


def test_only_what_was_not_seen_is_painted():
    frames = [view(world(), 2 * index, 0) for index in range(11)]
    painter = TruePainter(frames)
    list(VideoZoom(painter, Surround(0.75, 5)).frames(centres(frames), ""))
    fractions = [mask.mean() for mask in painter.masks]
    assert fractions[0] == BORDER.mean()
    assert fractions[2] < fractions[1] < fractions[0]
    for mask, picture in zip(painter.masks, painter.pictures, strict=True):
        assert not picture[mask].any()


def test_a_new_scene_gets_a_border_of_its_own_at_once():
    one, other = world(0), world(1)
    frames = [view(one, index, 0) for index in range(7)] + [view(other, index, 0) for index in range(7)]
    zoom = VideoZoom(TruePainter(frames), Surround(0.75, 5))
    shown = list(zoom.frames(centres(frames), ""))
    assert (zoom.cut_count, zoom.painted_count) == (1, 4)
    assert psnr_db(shown[6][BORDER], frames[6][BORDER]) > 20
    assert psnr_db(shown[7][BORDER], frames[7][BORDER]) > 30


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75])
def test_the_smallest_frames_have_a_border_too(scale):
    class Tiny(TruePainter):
        size = (64, 64)

        def paint(self, picture, mask, prompt, painting, *, on_step=None):
            return np.full((64, 64, 3), 90, np.uint8)

    zoom = VideoZoom(Tiny([]), Surround(scale, 3))
    width, height = zoom.live_size
    lives = [view(world(), index, 0, (width, height)) for index in range(8)]
    assert [frame.shape for frame in zoom.frames(lives, "")] == [(64, 64, 3)] * 8


def test_frames_of_another_shape_are_refused():
    zoom = VideoZoom(TruePainter([]), Surround(0.75, 5))
    with pytest.raises(ValueError, match=r"uint8 \(96, 96, 3\)"):
        list(zoom.frames([np.zeros((96, 95, 3), np.uint8)], ""))


@pytest.mark.parametrize("every", [0, -1, 10**6])
def test_keyframe_intervals_without_sense_are_refused(every):
    with pytest.raises(UserError, match="--keyframe-every"):
        Surround(0.75, every)


def test_long_intervals_do_not_hold_their_frames():
    zoom = VideoZoom(TruePainter([view(world(), 0, 0)]), Surround(0.75, 50_000))
    lives = iter([*centres([view(world(), 0, 0)] * 3), None])
    frames = zoom.frames(lives, "")
    for _ in range(3):
        next(frames)  # each comes before the next one is read


def test_a_bundle_paints_the_border(tiny_bundles):
    frames = [view(world(), index, 0, (64, 64))[8:-8, 8:-8] for index in range(7)]
    with open_bundle(tiny_bundles["onnxruntime-fp32"]) as opened:
        zoom = VideoZoom(opened.inpainting, Surround(0.75, 3))
        assert zoom.live_size == (48, 48)
        steps = []
        shown = list(zoom.frames(frames, "a reef", Painting(2, guidance=1), lambda: steps.append(1)))
    assert len(shown) == 7
    assert len(steps) >= 2 * zoom.painted_count == 6
    assert all(frame.shape == (64, 64, 3) for frame in shown)
    for frame, live in zip(shown, frames, strict=True):
        np.testing.assert_array_equal(frame[10:-10, 10:-10], live[2:-2, 2:-2])
