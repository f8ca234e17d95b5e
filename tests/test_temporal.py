"""What is measured of a video is what its name says: by hand, and on motion that is known."""

import numpy as np
import pytest

from outzoom.benchmarks.temporal import Statistics, backward_flow, drift, flicker_levels, statistics

cv2 = pytest.importorskip("cv2")


def grey(values) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=2)


def flow(height: int, width: int, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return np.full((height, width, 2), (x, y), np.float32)


def test_flicker_is_the_mean_difference_where_the_mask_is():
    before, after = grey([[10, 20], [30, 40]]), grey([[12, 20], [30, 46]])
    everywhere = np.ones((2, 2), bool)
    assert flicker_levels(before, after, everywhere, flow(2, 2)) == 2.0  # (2 + 0 + 0 + 6) / 4
    assert flicker_levels(before, after, np.array([[True, False], [False, False]]), flow(2, 2)) == 2.0
    assert flicker_levels(before, after, np.array([[False, True], [True, False]]), flow(2, 2)) == 0.0


def test_motion_that_the_flow_explains_is_no_flicker_and_what_came_in_does_not_count():
    """All moves one pixel to the right: each pixel was one to the left, and the first column is new."""
    before, after = grey([[10, 20, 30], [40, 50, 60]]), grey([[99, 10, 20], [99, 40, 50]])
    everywhere = np.ones((2, 3), bool)
    assert flicker_levels(before, after, everywhere, flow(2, 3, x=-1)) == 0.0
    assert flicker_levels(before, after, everywhere, flow(2, 3)) > 20
    only_new = np.array([[True, False, False]] * 2)
    assert np.isnan(flicker_levels(before, after, only_new, flow(2, 3, x=-1)))


def test_the_flow_points_back_to_where_a_pixel_was():
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.float32)
    picture = np.clip(128 + 8 * (cv2.GaussianBlur(noise, (0, 0), 3) - 128), 0, 255).astype(np.uint8)
    moved = np.roll(picture, (2, 3), axis=(0, 1))  # down by 2, right by 3
    found = backward_flow(picture, moved)[24:-24, 24:-24]
    np.testing.assert_allclose(np.median(found, axis=(0, 1)), [-3, -2], atol=0.1)


def test_statistics_by_hand():
    """A single step of 40 in a flat picture: its Laplacian is 4 * 40 there and 40 at each of its 4 neighbours."""
    picture = grey(np.full((5, 5), 100))
    picture[2, 2] = 140
    found = statistics(picture, np.ones((5, 5), bool))
    assert found.mean_rgb_levels == pytest.approx((101.6,) * 3)  # 100 + 40 / 25
    assert found.contrast_levels == pytest.approx(40 * np.sqrt(24) / 25)
    assert found.detail_levels == pytest.approx((160 + 4 * 40) / 9)


def test_statistics_tell_the_channels_apart():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0], picture[..., 2] = 30, 90
    assert statistics(picture, np.ones((4, 4), bool)).mean_rgb_levels == (30, 0, 90)


def test_a_mask_on_the_rim_only_has_no_detail_to_tell():
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    with pytest.raises(ValueError, match="rim"):
        statistics(grey(np.zeros((4, 4))), mask)


def test_drift_is_from_the_first_to_the_last_window():
    series = [
        Statistics((100.0, 50.0, 0.0), 20.0, 10.0),
        Statistics((102.0, 50.0, 0.0), 20.0, 10.0),
        Statistics((150.0, 50.0, 0.0), 99.0, 99.0),  # in neither window
        Statistics((101.0, 44.0, 0.0), 10.0, 30.0),
        Statistics((101.0, 46.0, 1.0), 10.0, 30.0),
    ]
    found = drift(series, 2)
    assert (found.colour_levels, found.contrast_ratio, found.detail_ratio) == (5.0, 0.5, 3.0)


@pytest.mark.parametrize(("count", "window"), [(3, 2), (0, 1), (4, 0)])
def test_drift_of_too_few_pictures_is_refused(count, window):
    with pytest.raises(ValueError, match="drift needs"):
        drift([Statistics((0.0, 0.0, 0.0), 1.0, 1.0)] * count, window)
