"""Pictures in and out: every kind of file becomes RGB or a clear error."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from outzoom.runtime.errors import UserError
from outzoom.runtime.images import MAX_MEGAPIXELS, film_strip, load_image, save_png

A = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[11, 12, 13], [14, 15, 16], [17, 18, 19]]], np.uint8)


def saved(folder: Path, image: Image.Image, ending: str = "png", **options: object) -> Path:
    path = folder / f"picture.{ending}"
    image.save(path, **options)
    return path


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is this large but holds almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_saved_picture_loads_unchanged(tmp_path: Path) -> None:
    save_png(A, tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.dtype == np.uint8 and loaded.flags.writeable and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, A)


def test_saving_refuses_what_is_not_a_picture(tmp_path: Path) -> None:
    for array in (A.astype(np.float32), A[..., 0], A[..., :2], A[:0]):
        with pytest.raises(ValueError, match="height, width, 3"):
            save_png(array, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "pixel", "rgb"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 51), (244, 224, 204)),  # a fifth of the colour, four fifths of white
        ("LA", (0, 51), (204, 204, 204)),
        ("I;16", 257 * 3, (3, 3, 3)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_modes_become_rgb_over_white(tmp_path: Path, mode: str, pixel: object, rgb: object) -> None:
    path = saved(tmp_path, Image.new(mode, (3, 2), pixel))
    for size in (None, (3, 2), (5, 4)):
        assert (load_image(path, size) == rgb).all()


@pytest.mark.parametrize("ending", ["tif", "jpg"])
def test_cmyk_becomes_rgb(tmp_path: Path, ending: str) -> None:
    picture = load_image(saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), ending))
    np.testing.assert_allclose(picture[0, 0], (0, 255, 255), atol=2)  # JPEG is lossy


def test_palettes_become_rgb_and_their_transparent_entry_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert load_image(saved(tmp_path, image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    path = saved(tmp_path, image, "gif", transparency=1)
    assert load_image(path).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bit_grey_of_other_formats_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "grey.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257 * 9, 65535))
    assert load_image(tmp_path / "grey.pgm")[..., 0].tolist() == [[9, 255]]
    path = saved(tmp_path, Image.fromarray(np.array([[257 * 9, 65535]], np.uint16)), "tif")
    assert load_image(path)[..., 0].tolist() == [[9, 255]]


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="floating-point"):
        load_image(saved(tmp_path, Image.new("F", (2, 2), 0.5), "tif"))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    path = saved(tmp_path, first, "gif", save_all=True, append_images=[second])
    assert (load_image(path) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, A),
        (2, A[:, ::-1]),
        (3, A[::-1, ::-1]),
        (4, A[::-1]),
        (5, A.transpose(1, 0, 2)),
        (6, np.rot90(A, -1)),
        (7, A[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(A)),
    ],
)
def test_the_orientation_in_exif_is_applied(
    tmp_path: Path, orientation: int, expected: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(A), exif=exif)
    np.testing.assert_array_equal(load_image(path), expected)


def test_a_turned_jpeg_is_cut_after_turning(tmp_path: Path) -> None:
    """The left half is red; turned clockwise the red is on top. Large enough that JPEG decodes at 1/4."""
    pixels = np.zeros((600, 1200, 3), np.uint8)
    pixels[:, :600, 0] = pixels[:, 600:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = load_image(saved(tmp_path, Image.fromarray(pixels), "jpg", exif=exif), (32, 64))
    assert picture.shape == (64, 32, 3)
    np.testing.assert_allclose(picture[:30], np.broadcast_to((255, 0, 0), (30, 32, 3)), atol=4)
    np.testing.assert_allclose(picture[34:], np.broadcast_to((0, 0, 255), (30, 32, 3)), atol=4)


def test_a_size_cuts_out_the_centre(tmp_path: Path) -> None:
    wide = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(2, 4, 3)
    path = saved(tmp_path, Image.fromarray(wide))
    np.testing.assert_array_equal(load_image(path, (2, 2)), wide[:, 1:3])
    tall = wide.transpose(1, 0, 2)
    path = saved(tmp_path, Image.fromarray(tall))
    np.testing.assert_array_equal(load_image(path, (2, 2)), tall[1:3])
    with pytest.raises(ValueError, match="size"):
        load_image(path, (0, 5))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_any_picture_fits_any_size_with_its_colour_kept(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size: tuple[int, int]
) -> None:
    path = saved(tmp_path_factory.mktemp("fit"), Image.new("RGB", (width, height), (9, 99, 199)))
    picture = load_image(path, size)
    assert picture.shape == (size[1], size[0], 3)
    assert (picture == (9, 99, 199)).all()


def test_one_pixel_fills_a_frame(tmp_path: Path) -> None:
    picture = load_image(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3))), (512, 512))
    assert picture.shape == (512, 512, 3) and (picture == (1, 2, 3)).all()


@pytest.mark.parametrize("name", ["missing.png", "folder", "text.png", "empty.png", "nul\0.png"])
def test_what_is_no_picture_is_the_users_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value) and caught.value.hint


def test_formats_outside_the_list_are_not_even_tried(tmp_path: Path) -> None:
    """Pillow would hand an EPS file to Ghostscript, a program of its own."""
    path = saved(tmp_path, Image.new("RGB", (2, 2)), "eps")
    with pytest.raises(UserError, match="not a picture in a format that outzoom reads"):
        load_image(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm"])
def test_a_truncated_picture_is_an_error_not_grey_pixels(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), ending)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cannot be decoded|not a picture"):
        load_image(path)


def encoded(ending: str) -> bytes:
    image, file = Image.fromarray(A).resize((16, 16)), io.BytesIO()
    image.save(file, ending, exif=Image.Exif())
    return file.getvalue()


@settings(max_examples=300, deadline=None)
@given(
    ending=st.sampled_from(["png", "jpeg", "webp", "gif", "tiff", "bmp", "ppm"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0.5, 1),
)
def test_damaged_bytes_give_a_picture_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, changes: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(encoded(ending))
    for position, value in changes:
        data[min(int(position * len(data)), len(data) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[: int(cut * len(data))])
    try:
        assert load_image(path, (8, 8)).shape == (8, 8, 3)
    except UserError as error:
        assert error.hint


@pytest.mark.parametrize("side", [10_001, 14_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_size(side, side))
    with pytest.raises(UserError, match=f"more than {MAX_MEGAPIXELS} megapixels"):
        load_image(tmp_path / "bomb.png")


def test_a_png_of_64_megapixels_loads(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("1", (8000, 8000), 1))
    assert (load_image(path, (64, 64)) == 255).all()


def test_a_picture_just_under_the_limit_loads_without_a_warning(tmp_path: Path) -> None:
    assert load_image(saved(tmp_path, Image.new("1", (9990, 10_000))), (8, 8)).shape == (8, 8, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    """64 megapixels are 256 MB in Pillow; at 1/4 they are 16."""
    path = saved(tmp_path, Image.new("RGB", (8000, 8000), (200, 100, 50)), "jpg")
    script = """
import re, sys
from outzoom.runtime.images import load_image
assert load_image(sys.argv[1], (512, 512)).shape == (512, 512, 3)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000


def test_a_film_strip_has_white_gaps_and_fills_its_last_row(tmp_path: Path) -> None:
    frames = [np.full((1, 2, 3), value, np.uint8) for value in (10, 20, 30)]
    assert film_strip(frames, gap_px=1)[..., 0].tolist() == [[10, 10, 255, 20, 20, 255, 30, 30]]
    assert film_strip(frames, columns=2, gap_px=1)[..., 0].tolist() == [
        [10, 10, 255, 20, 20],
        [255, 255, 255, 255, 255],
        [30, 30, 255, 255, 255],
    ]


def test_a_film_strip_needs_frames_of_one_shape() -> None:
    for frames in ([], [A, A[:1]]):
        with pytest.raises(ValueError, match="one shape"):
            film_strip(frames)
