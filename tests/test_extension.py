"""A picture extended over what is to be painted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outzoom.runtime.extension import extended


def picture_of(levels):
    return np.repeat(np.array(levels, np.uint8)[..., None], 3, axis=2)


def test_what_is_masked_takes_the_colour_beside_it():
    picture = picture_of([[40, 0], [40, 0]])
    made = extended(picture, np.array([[False, True], [False, True]]))
    assert made.tolist() == picture_of([[40, 40], [40, 40]]).tolist()


def test_between_two_colours_it_passes_from_one_to_the_other():
    picture = picture_of([[0] * 2 + [99] * 4 + [200] * 2] * 8)
    made = extended(picture, picture[..., 0] == 99)
    row = made[4, :, 0].tolist()
    assert row[:2] == [0, 0] and row[-2:] == [200, 200]
    assert row == sorted(row) and 0 < row[2] < row[5] < 200


def test_a_picture_without_known_pixels_becomes_grey():
    assert (extended(picture_of([[1, 2], [3, 4]]), np.ones((2, 2), np.bool_)) == 128).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_known_pixels_stay_and_others_are_within_their_range(width, height, seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.random((height, width)) < 0.5
    mask[0, 0] = False
    made = extended(picture, mask)
    assert np.array_equal(made[~mask], picture[~mask])
    assert (made >= picture[~mask].min(axis=0)).all() and (made <= picture[~mask].max(axis=0)).all()
