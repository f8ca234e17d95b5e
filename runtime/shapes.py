"""The dimensions that an engine may leave open: a bundle of several sizes holds one graph, shaped when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Size = tuple[int, int]  # width and height in pixels
Dimension = int | str  # a number, or one of the names that `dimensions` gives one for

NAMES = ("batch", "height", "width", "latent_height", "latent_width")


def dimensions(size: Size, vae_scale_factor: int, batch: int = 1) -> dict[str, int]:
    """The number of every named dimension for a picture size and a batch of the UNet."""
    width, height = size
    sides = (batch, height, width, height // vae_scale_factor, width // vae_scale_factor)
    return dict(zip(NAMES, sides, strict=True))


def resolve(shape: Sequence[Dimension], numbers: Mapping[str, int]) -> tuple[int, ...]:
    """`shape` with its named dimensions replaced by their numbers."""
    return tuple(numbers[side] if isinstance(side, str) else side for side in shape)


def parse_size(text: str) -> Size:
    """The size that a text like 512x384 names; raises ValueError for any other text."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ValueError(f"no size: {text!r}")
    return int(parts[0]), int(parts[1])
