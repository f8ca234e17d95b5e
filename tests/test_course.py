"""Where keyframes fall: by hand, and properties that hold of every course."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outzoom.runtime import Course, Motion, UserError
from outzoom.runtime.course import render
from outzoom.runtime.geometry import MAX_SCALE, MIN_SCALE

CLOSINGS = ["open", "end", "loop"]


def frames_of_keyframes(course):
    return [course.frame_of(i) for i in range(course.last + 1)]


@pytest.mark.parametrize(
    ("every", "closing", "frames"),
    [
        (30, "open", [0, 30, 60, 90, 120]),
        (30, "loop", [0, 30, 60, 90, 120]),
        (30, "end", [0, 30, 59, 89, 119]),  # 89 frames in three, and 30 to widen twice at last
        (20, "end", [0, 18, 36, 53, 71, 89, 119]),
        (5, "loop", [*range(0, 91, 5), 120]),
    ],
)
def test_keyframes_of_four_seconds_at_30_fps(every, closing, frames):
    assert frames_of_keyframes(Course.of(Motion(4, 30, 2.0, every), closing)) == frames


def test_a_picture_that_closes_comes_when_the_view_has_widened_twice():
    course = Course.of(Motion(4, 30, 2.0, 5), "end")
    assert course.scale(course.last) == pytest.approx(0.5)
    assert course.scale(1) == pytest.approx(2 ** (-5 / 30))


def test_a_zoom_too_short_to_be_closed_says_how_long_it_must_be():
    with pytest.raises(UserError, match=r"widens 1\.41 times") as caught:
        Course.of(Motion(0.5, 30, 2.0, 15), "loop")
    assert "--seconds 1 " in caught.value.hint
    assert Course.of(Motion(1.0, 30, 2.0, 15), "loop").last == 1
    with pytest.raises(UserError) as caught:
        Course.of(Motion(1.0, 30, 2.0, 15), "end")
    assert "--seconds 1.034 " in caught.value.hint
    assert Course.of(Motion(1.034, 30, 2.0, 15), "end").last == 1


def test_a_keyframe_comes_into_view_on_the_frame_after_the_one_before():
    course = Course.of(Motion(4, 30, 2.0, 15))
    assert [course.seconds_of(i) for i in range(4)] == [0, 0, 0.5, 1]


@given(
    st.integers(1, 400), st.sampled_from([1.0, 23.976, 30.0]), st.floats(1.05, 8), st.integers(1, 40),
    st.sampled_from(CLOSINGS),
)  # fmt: skip
def test_every_frame_is_between_the_keyframes_beside_it(frames, fps, rate, every, closing):
    try:
        motion = Motion(frames / fps, fps, rate, every)
        course = Course.of(motion, closing)
    except UserError:
        assume(False)
    stops = frames_of_keyframes(course)
    assert stops == sorted(set(stops)) and stops[0] == 0
    if closing != "open":
        assert stops[-1] == (motion.frame_count if closing == "loop" else motion.frame_count - 1)
        assert course.scale(course.last) <= 0.5 + 1e-9
        longest = every if motion.scale <= 0.94 else 2 * every - 1  # else halves of it could be too short
        assert all(b - a <= longest for a, b in pairwise(stops[:-1]))
    assert all(MIN_SCALE * (1 - 1e-9) <= course.scale(i) <= MAX_SCALE * (1 + 1e-9) for i in range(1, course.spread + 1))
    for frame in range(motion.frame_count):
        keyframe, done = course.locate(frame)
        assert 0 <= done < 1
        if done:
            assert stops[keyframe] + done * (stops[keyframe + 1] - stops[keyframe]) == pytest.approx(frame)
        else:
            assert stops[keyframe] == frame


@pytest.mark.parametrize("closing", CLOSINGS)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_zoom_in_is_the_zoom_out_reversed_and_asks_for_each_keyframe_once(closing, backwards):
    course = Course.of(Motion(3, 10, 2.0, 5), closing)
    rng = np.random.default_rng(1)
    keyframes = rng.integers(0, 256, (course.last + 1, 16, 24, 3), np.uint8)
    forwards = np.array(list(render(course, lambda i: keyframes[i], 2.0)))
    asked = []

    def keyframe_at(index):
        asked.append(index)
        return keyframes[index]

    order = range(course.frame_count)[:: -1 if backwards else 1]
    frames = np.array(list(render(course, keyframe_at, 2.0, order)))
    assert np.array_equal(frames, forwards[::-1] if backwards else forwards)
    assert sorted(asked) == list(range(course.last + 1))
