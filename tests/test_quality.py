"""The quality metrics, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from outzoom.benchmarks.quality import border_psnr_db, border_ssim, psnr_db, seam_ratio, ssim

Picture = NDArray[np.uint8]


def grey(rows: list[list[int]]) -> Picture:
    """A picture with the same level in all three channels."""
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=2)


def plain(level: int, side: int = 16) -> Picture:
    return np.full((side, side, 3), level, np.uint8)


def noisy(side: int = 32, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_psnr_of_three_numbers() -> None:
    one, other = np.array([[[10, 20, 30]]], np.uint8), np.array([[[10, 20, 35]]], np.uint8)
    mean_square = (0 + 0 + 25) / 3
    assert psnr_db(one, other) == pytest.approx(10 * math.log10(255**2 / mean_square), abs=1e-9)
    assert psnr_db(one, other) == pytest.approx(38.9226, abs=5e-5)


def test_psnr_does_not_wrap_around_in_8_bits() -> None:
    assert psnr_db(plain(255), plain(0)) == pytest.approx(0)


def test_equal_pictures_have_infinite_psnr_and_an_ssim_of_1() -> None:
    assert psnr_db(noisy(), noisy()) == math.inf
    assert ssim(noisy(), noisy()) == 1


def test_border_psnr_sees_the_masked_pixels_only() -> None:
    reference, picture = grey([[10, 20, 30]]), grey([[110, 20, 33]])
    mask = np.array([[False, True, True]])
    mean_square = (0 + 9) / 2
    assert border_psnr_db(reference, picture, mask) == pytest.approx(10 * math.log10(255**2 / mean_square))
    assert border_psnr_db(reference, picture, np.array([[False, True, False]])) == math.inf


def test_ssim_of_two_plain_pictures_is_its_luminance_term() -> None:
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 110 + c1) / (100**2 + 110**2 + c1)
    assert expected == pytest.approx(0.995476, abs=1e-6)
    assert ssim(plain(100), plain(110)) == pytest.approx(expected, abs=1e-9)
    assert border_ssim(plain(100), plain(110), np.eye(16, dtype=bool)) == pytest.approx(expected, abs=1e-9)


def test_border_ssim_sees_damage_in_the_border_only_where_the_mask_is() -> None:
    reference = noisy(64)
    damaged = reference.copy()
    damaged[:, 48:] = 255 - damaged[:, 48:]
    left, right = np.zeros((2, 64, 64), bool)
    left[:, :32], right[:, 48:] = True, True
    assert border_ssim(reference, damaged, left) == pytest.approx(1, abs=1e-12)
    assert border_ssim(reference, damaged, right) < 0


def test_ssim_falls_as_noise_grows() -> None:
    reference = np.linspace(60, 190, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    noise = np.random.default_rng(1).standard_normal(reference.shape)
    levels = [ssim(reference, np.clip(reference + sigma * noise, 0, 255).astype(np.uint8)) for sigma in (2, 8, 32)]
    assert 1 > levels[0] > levels[1] > levels[2] > 0


def test_seam_ratio_of_three_steps() -> None:
    """Steps 2, 6, 2 along the row; the mask's edge is at the 6."""
    assert seam_ratio(grey([[0, 2, 8, 10]]), np.array([[False, False, True, True]])) == 3


def test_seam_ratio_averages_over_both_directions_and_the_channels() -> None:
    """Across the edge 6 and 9; elsewhere 3 and 0. One channel of three counts a third."""
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[..., 1] = [[0, 18], [9, 36]]  # steps: right 18, 27; down 9, 18
    mask = np.array([[False, True], [False, True]])  # crossed by the steps to the right
    assert seam_ratio(picture, mask) == pytest.approx(((18 + 27) / 2) / ((9 + 18) / 2))


def test_a_ramp_has_no_seam_wherever_the_mask_ends() -> None:
    ramp = grey([[10 * x + 10 * y for x in range(8)] for y in range(8)])
    mask = np.ones((8, 8), bool)
    mask[2:6, 2:6] = False
    assert seam_ratio(ramp, mask) == 1


def test_seam_ratio_of_flat_pictures_is_not_a_finite_number() -> None:
    mask = np.array([[False, False, True, True]])
    assert math.isnan(seam_ratio(grey([[7, 7, 7, 7]]), mask))
    assert seam_ratio(grey([[7, 7, 9, 9]]), mask) == math.inf


@pytest.mark.parametrize("level", [True, False])
def test_a_mask_without_an_edge_has_no_seam_to_measure(level: bool) -> None:
    with pytest.raises(ValueError, match="no edge"):
        seam_ratio(plain(3), np.full((16, 16), level))


def test_an_empty_mask_is_an_error_not_a_perfect_score() -> None:
    empty = np.zeros((16, 16), bool)
    with pytest.raises(ValueError, match="empty"):
        border_psnr_db(plain(1), plain(2), empty)
    with pytest.raises(ValueError, match="empty"):
        border_ssim(plain(1), plain(2), empty)


def test_pictures_of_different_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        psnr_db(plain(1, 16), plain(1, 32))
    with pytest.raises(ValueError, match="dimensions"):
        ssim(plain(1, 16), plain(1, 32))
