"""What the parts of the report share: numbers as text, and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .results import BundleResult

if TYPE_CHECKING:
    from markupsafe import Markup

Colours = Mapping[str, str]  # by bundle
MAX_PICTURE_PX = 256  # larger frames are shown smaller: strip.png holds them in full


@dataclass(frozen=True)
class Chart:
    """A plot, and all that it shows in words for those who cannot see it."""

    title: str
    svg: Markup
    alt: str


def digits(value: float) -> str:
    """A number with three significant digits, and a comma at the thousands."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def mb(size_bytes: float) -> str:
    """Bytes as megabytes (10^6)."""
    return digits(size_bytes / 1e6)


def seconds(milliseconds: float) -> str:
    """Milliseconds as seconds."""
    return digits(milliseconds / 1e3)


def similarity(ssim: float) -> str:
    """SSIM with four decimals, and 1 only for equal pictures."""
    if ssim == 1:
        return "1"
    return f"{ssim:.4f}" if ssim < 0.99995 else ">0.9999"


def first_border_psnr_db(bundle: BundleResult) -> float:
    """Of the first painted keyframe, in dB: infinite if it is the reference's, minus infinity if not compared."""
    if not bundle.quality:
        return -math.inf
    value = bundle.quality[0].border_psnr_db
    return math.inf if value is None else value


def smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (height, width, 3), at most MAX_PICTURE_PX a side."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX), Image.Resampling.LANCZOS)
    return np.asarray(image)
