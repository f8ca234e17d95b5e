"""Bundles of several sizes and of batch 2: one graph, shaped when it is loaded."""

import numpy as np
import onnx_ir as ir
import pytest

from outzoom.export import Shapes, open_checkpoint
from outzoom.export.parity import reference_output, tensor_psnr_db
from outzoom.export.shapes import about_bytes
from outzoom.runtime import Painting, UserError, open_bundle, open_manifest
from outzoom.runtime.shapes import dimensions, parse_size, resolve

SIZES = ((64, 64), (96, 64), (64, 128))
TARGETS = ["onnxruntime", "openvino-cpu"]


@pytest.fixture(scope="module")
def many(tiny_checkpoint, tmp_path_factory, build_bundles):
    """Bundles of three sizes, whose UNet takes two pictures at once."""
    out = tmp_path_factory.mktemp("many")
    return build_bundles(tiny_checkpoint, out, TARGETS, ["fp32"], SIZES, batch=2)


@pytest.mark.parametrize(
    ("shape", "elements"),
    [((2, 3), 6), (("batch", 3, "latent_height"), 2 * 3 * 8), (("4*s12*s7", 5), 4 * 12 * 12 * 5), ((None, 2), 24)],
)
def test_the_size_of_a_tensor_is_about_that_of_its_dimensions(shape, elements):
    value = ir.Value(name="x", shape=ir.Shape(shape))
    assert about_bytes(value, dimensions((96, 64), 8, batch=2)) == 4 * elements


def test_named_dimensions_have_the_numbers_of_a_size():
    numbers = dimensions((96, 64), vae_scale_factor=8, batch=2)
    assert resolve(("batch", 9, "latent_height", "latent_width"), numbers) == (2, 9, 8, 12)
    assert resolve((1, 3, "height", "width"), numbers) == (1, 3, 64, 96)


@pytest.mark.parametrize("text", ["512", "512x", "x", "-8x8", "8x8x8", "999999x8", "\uff18x\uff18"])
def test_a_text_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


def test_only_what_differs_between_loads_stays_open():
    assert Shapes(((64, 64),)).open == ()
    assert Shapes(((64, 64),), batch=2).open == ("batch",)
    assert Shapes(((64, 64), (96, 64))).open == ("height", "width", "latent_height", "latent_width")


def test_shapes_that_make_no_sense_are_refused(tiny_checkpoint):
    with pytest.raises(UserError, match="64x64 is asked for twice"):
        Shapes(((64, 64), (64, 64)))
    with pytest.raises(UserError, match="batch is 1 or 2, got 3"):
        Shapes(((64, 64),), batch=3)
    with pytest.raises(UserError, match="got 64x70"):
        Shapes(((64, 64), (64, 70))).check(open_checkpoint(tiny_checkpoint))


@pytest.mark.parametrize("target", TARGETS)
def test_every_size_is_within_60_db_of_the_module(many, tiny_checkpoint, target):
    bundle = many[f"{target}-fp32"]
    manifest = open_manifest(bundle).manifest
    assert (manifest.sizes, manifest.batch) == (SIZES, 2)
    assert all(component.parity_psnr_db is None or component.parity_psnr_db >= 60
               for component in manifest.components.values())  # fmt: skip
    rng = np.random.default_rng(3)
    for size in SIZES:
        with open_bundle(bundle, size=size) as zoom:
            for name, batch in (("unet", 1), ("unet", 2), ("vae_encoder", 1), ("vae_decoder", 1)):
                numbers = dimensions(size, manifest.vae_scale_factor, batch)
                feeds = {
                    spec.name: rng.standard_normal(resolve(spec.shape, numbers), np.float32)
                    for spec in manifest.components[name].inputs
                }
                expected = reference_output(open_checkpoint(tiny_checkpoint), name, feeds)
                (found,) = zoom.inpainting.engine(name, batch).run(feeds).values()
                assert tensor_psnr_db(expected, found) >= 60, (size, name, batch)


@pytest.mark.parametrize("target", TARGETS)
def test_guidance_in_one_call_paints_what_two_calls_paint(many, tiny_bundles, target):
    rng = np.random.default_rng(4)
    picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.ones((64, 64), bool)
    mask[16:48, 16:48] = False
    one, two = (open_bundle(bundles[f"{target}-fp32"]) for bundles in (many, tiny_bundles))
    for guidance in (1.0, 5.0):
        painting = Painting(steps=4, guidance=guidance, negative_prompt="a town")
        pictures = [zoom.inpainting.paint(picture, mask, "a reef", painting) for zoom in (one, two)]
        # float32 sums in another order: a grey level here and there
        assert tensor_psnr_db(*pictures) > 50


def test_the_weights_are_there_once_whatever_the_number_of_sizes(many, tiny_bundles):
    for target in TARGETS:
        three, one = (open_manifest(bundles[f"{target}-fp32"]).size_bytes for bundles in (many, tiny_bundles))
        assert three < 1.1 * one


def test_a_size_that_the_bundle_does_not_paint_is_refused_with_those_that_it_does(many):
    with pytest.raises(UserError, match="does not paint 128x128; it paints 64x64, 96x64, 64x128"):
        open_bundle(many["onnxruntime-fp32"], size=(128, 128))


def test_a_zoom_at_another_size_has_frames_of_that_size(many):
    with open_bundle(many["openvino-cpu-fp32"], size=(96, 64)) as zoom:
        picture = np.zeros((64, 96, 3), np.uint8)
        frames = zoom.keyframes(picture, "a reef", 0.5, Painting(steps=1))
        assert [next(frames).shape for _ in range(2)] == [(64, 96, 3)] * 2
