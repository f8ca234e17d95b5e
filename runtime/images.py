"""Pictures in and out: any file a user may hand over becomes uint8 RGB, or an error that says why not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .files import atomic_file

if TYPE_CHECKING:
    from PIL import Image

MAX_MEGAPIXELS = 100
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")  # none that runs another program


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read a picture as (height, width, 3) uint8 RGB.

    The orientation in its EXIF data is applied; transparent parts are composited over white; of an animation
    it is the first frame; 16-bit grey keeps its upper 8 bits; colour profiles are ignored (taken as sRGB).
    With `size`, (width, height) in pixels, the largest centred part of that aspect ratio is cut out and
    resized to it with a Lanczos filter.

    Raises UserError for a file that is missing, unreadable, no picture, damaged, or over MAX_MEGAPIXELS
    (checked before its pixels are decoded).
    """
    from PIL import Image, UnidentifiedImageError

    if size is not None and min(size) < 1:
        raise ValueError(f"size must be at least 1x1, got {size}")
    path = Path(path)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        if not path.is_file():
            found = "it is not a regular file" if path.exists() else "there is no such file"
            raise UserError(f"cannot read the picture {path}: {found}", hint="check the path")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs and of odd metadata; neither is for the user
            with Image.open(path, formats=formats) as image:
                return _decoded(image, path, size)
    except (UserError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"cannot read the picture {path}: permission denied", hint="check its rights") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not a picture in a format that outzoom reads ({', '.join(formats)})",
            hint="convert it to PNG or JPEG",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged or hostile bytes
        raise UserError(
            f"the picture {path} cannot be decoded: {error or type(error).__name__}",
            hint="it may be damaged or incomplete: copy or export it again",
        ) from error


def save_png(array: NDArray[np.uint8], path: str | Path) -> None:
    """Write (height, width, 3) uint8 RGB as a PNG file, atomically (see `atomic_file` for what raises)."""
    from PIL import Image

    _check_picture(array)
    with atomic_file(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")


def film_strip(frames: Sequence[NDArray[np.uint8]], columns: int | None = None, gap_px: int = 4) -> NDArray[np.uint8]:
    """Frames of one shape (h, w, 3) on white, `gap_px` apart, in one row or in rows of `columns`.

    Raises ValueError for no frames or for frames of different shapes.
    """
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ValueError(f"frames must share one shape, got {[frame.shape for frame in frames]}")
    _check_picture(frames[0])
    height, width, _ = frames[0].shape
    columns = min(columns or len(frames), len(frames))
    rows = math.ceil(len(frames) / columns)
    strip = np.full((rows * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // columns) * (height + gap_px), (index % columns) * (width + gap_px)
        strip[top : top + height, left : left + width] = frame
    return strip


def _check_picture(array: NDArray[np.uint8]) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(f"a picture is uint8 of shape (height, width, 3), got {array.dtype} {array.shape}")


def _too_large(path: Path) -> UserError:
    return UserError(
        f"the picture {path} has more than {MAX_MEGAPIXELS} megapixels",
        hint="make a smaller copy of it first",
    )


def _decoded(image: Image.Image, path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    from PIL import ImageOps

    if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
        raise _too_large(path)
    if size is not None:  # JPEG then decodes at 1/2, 1/4 or 1/8; a square, as EXIF may turn it
        image.draft(None, (2 * max(size), 2 * max(size)))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise UserError(f"the picture {path} holds floating-point values", hint="save it with 8 or 16 bits")
    picture = _in_8_bits(image)
    if size is not None:
        picture = _fitted(picture, size)
    return np.array(_on_white(picture))


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The picture in mode L, RGB, or RGBA if parts of it are transparent."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        grey = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    fraction = min(picture.width / size[0], picture.height / size[1])
    width, height = size[0] * fraction, size[1] * fraction
    left, top = max(0.0, (picture.width - width) / 2), max(0.0, (picture.height - height) / 2)
    box = (left, top, min(left + width, picture.width), min(top + height, picture.height))
    return picture.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _on_white(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode != "RGBA":
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture)
    return white
