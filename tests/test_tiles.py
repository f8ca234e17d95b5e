"""Tiles of a picture: what is made of them is what would be made of the whole, where no pixel looks far."""

import numpy as np
import pytest
from conftest import DEMO
from hypothesis import given
from hypothesis import strategies as st

from outzoom.benchmarks.quality import psnr_db
from outzoom.export.parity import tensor_psnr_db
from outzoom.runtime import UserError, open_bundle
from outzoom.runtime.tiles import in_tiles, starts


def test_tiles_begin_evenly_and_share_a_quarter_at_least():
    assert starts(8, 8) == [0]
    assert starts(10, 4) == [0, 3, 6]
    assert starts(64, 32) == [0, 16, 32]
    assert starts(72, 32, unit=8) == [0, 16, 40]
    with pytest.raises(ValueError, match="do not fit"):
        starts(8, 9)


@given(tile=st.integers(1, 12), more=st.integers(0, 40))
def test_tiles_cover_a_side_and_do_not_leave_it(tile, more):
    side = 8 * (tile + more)
    begins = starts(side, 8 * tile, unit=8)
    covered = {cell for begin in begins for cell in range(begin, begin + 8 * tile)}
    assert covered == set(range(side))
    assert begins == sorted(set(begins)) and all(begin % 8 == 0 for begin in begins)


def array(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_what_looks_at_single_pixels_makes_of_tiles_what_it_makes_of_the_whole():
    whole = array(1, 3, 40, 24)
    seen = []

    def larger(part):
        seen.append(part.shape)
        return np.repeat(np.repeat(2 * part, 8, axis=2), 8, axis=3)

    assert np.allclose(in_tiles(whole, larger, (16, 16)), larger(whole), rtol=1e-6)
    assert set(seen[:-1]) == {(1, 3, 16, 16)}
    smaller = in_tiles(whole, lambda part: part[:, :1, ::8, ::8], (16, 16), unit=8)
    assert np.allclose(smaller, whole[:, :1, ::8, ::8], rtol=1e-6)


def test_what_differs_from_tile_to_tile_fades_from_one_to_the_other():
    tiles = iter([0.0, 1.0])
    made = in_tiles(np.zeros((1, 1, 8, 14), np.float32), lambda part: part + np.float32(next(tiles)), (8, 8))
    row = made[0, 0, 0]
    assert row[0] == 0 and row[-1] == 1
    assert np.all(np.diff(row) >= 0) and np.max(np.diff(row)) < 1


# on a bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, build_bundles):
    made = build_bundles(DEMO, tmp_path_factory.mktemp("tiles"), ["openvino-cpu"], ["fp32"], [(128, 128), (64, 64)])
    return made["openvino-cpu-fp32"]


def test_a_vae_in_tiles_makes_nearly_what_it_makes_whole(bundle, picture):
    image = picture.astype(np.float32) / 127.5 - 1
    with open_bundle(bundle) as whole, open_bundle(bundle, vae_tile=(64, 64)) as tiled:
        expected, latents = (zoom.inpainting.encode_image(image) for zoom in (whole, tiled))
        pictures = [zoom.inpainting.decode(expected) for zoom in (whole, tiled)]
    assert latents.shape == expected.shape
    assert tensor_psnr_db(expected, latents) > 25
    assert psnr_db(*pictures) > 28


def test_a_tile_that_the_bundle_has_no_engine_for_is_refused_with_those_that_go(bundle):
    with pytest.raises(UserError, match="of this bundle's sizes these fit: 64x64"):
        open_bundle(bundle, vae_tile=(32, 32))
    with pytest.raises(UserError, match="these fit: none"):
        open_bundle(bundle, size=(64, 64), vae_tile=(128, 128))
    assert open_bundle(bundle, vae_tile=(128, 128)).inpainting.vae_tile is None
