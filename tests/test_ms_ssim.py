"""Multi-scale structural similarity."""

import sys

import numpy as np
import pytest

from outzoom.benchmarks.quality import MS_SSIM_WEIGHTS, ms_ssim


@pytest.fixture
def noisy(picture):
    noise = np.random.default_rng(0).normal(0, 12, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def installed():
    pytest.importorskip("torchmetrics")


def by_the_paper(reference, picture, scales):
    """Wang 2003 on floats, with scipy's Gaussian filter; the rim of contrasts left out as torchmetrics does."""
    from scipy.ndimage import gaussian_filter

    def blurred(values):
        return np.stack(
            [gaussian_filter(values[..., c], 1.5, mode="mirror", radius=5) for c in range(values.shape[2])], axis=2
        )

    x, y = reference.astype(np.float64), picture.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    product = 1.0
    for scale, weight in enumerate(weights):
        mean_x, mean_y = blurred(x), blurred(y)
        var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
        contrast = (2 * (blurred(x * y) - mean_x * mean_y) + c2) / (var_x + var_y + c2)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        is_last = scale == scales - 1
        product *= ((luminance * contrast).mean() if is_last else contrast[5:-5, 5:-5].mean()) ** weight
        x, y = (v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2, 3).mean(axis=(1, 3)) for v in (x, y))
    return product


def test_it_is_what_the_paper_says(installed, picture, noisy):
    value, scales = ms_ssim(picture, noisy)
    assert scales == 4  # of 128 pixels
    assert value == pytest.approx(by_the_paper(picture, noisy, 4), abs=1e-6)
    assert 0.5 < value < 0.99


def test_equal_pictures_have_1_and_opposite_ones_0(installed, picture):
    assert ms_ssim(picture, picture)[0] == pytest.approx(1.0)
    checks = (np.indices((128, 128)).sum(axis=0) // 8 % 2 * 255).astype(np.uint8)
    checks = np.repeat(checks[..., None], 3, axis=2)
    assert ms_ssim(checks, 255 - checks)[0] == 0.0


@pytest.mark.parametrize(("side", "scales"), [(512, 5), (176, 5), (175, 4), (99, 4), (98, 3), (44, 3), (22, 2)])
def test_there_are_as_many_scales_as_fit(installed, side, scales):
    picture = np.random.default_rng(1).integers(0, 256, (side, side + 8, 3), np.uint8)
    assert ms_ssim(picture, picture) == (pytest.approx(1.0), scales)


def test_a_picture_without_room_for_two_scales_has_none():
    picture = np.zeros((21, 128, 3), np.uint8)
    assert ms_ssim(picture, picture) is None


def test_without_its_package_there_is_none(picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert ms_ssim(picture, picture) is None
