"""The sizes that a bundle paints, and how many pictures its UNet takes at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.bundle import GUIDANCE
from ..runtime.errors import UserError
from ..runtime.shapes import Dimension, Size, dimensions, resolve
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    import onnx_ir as ir

InputShapes = dict[str, tuple[tuple[Dimension, ...], str]]  # by name: shape and numpy dtype name


@dataclass(frozen=True)
class Shapes:
    """`sizes` are (width, height) in pixels, the first is the default; `batch` 2 does guidance in one call."""

    sizes: tuple[Size, ...]
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch not in (1, 2):
            raise UserError(f"the batch is 1 or 2, got {self.batch}", hint="2 does guidance in one call of the UNet")
        if twice := [size for size in self.sizes if self.sizes.count(size) > 1]:
            raise UserError(f"the size {twice[0][0]}x{twice[0][1]} is asked for twice", hint="name each size once")

    @property
    def open(self) -> tuple[str, ...]:
        """The named dimensions that stay open until an engine is loaded; none for one size and batch 1."""
        sides = ("height", "width", "latent_height", "latent_width") if len(self.sizes) > 1 else ()
        return (*sides, "batch") if self.batch > 1 else sides

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises UserError for a size that the checkpoint's models can't take."""
        for width, height in self.sizes:
            checkpoint.check_size(width, height)


def input_shapes(checkpoint: Checkpoint, component: str) -> InputShapes:
    """What goes into a component, all of its variable dimensions by name."""
    text, unet, vae = (checkpoint.config(part) for part in ("text_encoder", "unet", "vae"))
    latent = ("latent_height", "latent_width")
    tokens = text["max_position_embeddings"]
    shapes: dict[str, InputShapes] = {
        "text_encoder": {"input_ids": ((1, tokens), "int64")},
        "unet": {
            "sample": (("batch", unet["in_channels"], *latent), "float32"),
            "timestep": ((1,), "float32"),
            "encoder_hidden_states": (("batch", tokens, unet["cross_attention_dim"]), "float32"),
        },
        "vae_encoder": {"sample": ((1, vae["in_channels"], "height", "width"), "float32")},
        "vae_decoder": {"latent_sample": ((1, vae["latent_channels"], *latent), "float32")},
    }
    if unet.get("time_cond_proj_dim"):
        shapes["unet"][GUIDANCE] = ((1,), "float32")
    return shapes[component]


def exported_shapes(checkpoint: Checkpoint, component: str, shapes: Shapes) -> InputShapes:
    """The inputs as the exported graph has them: only the dimensions that differ between loads keep their names."""
    numbers = dimensions(shapes.sizes[0], checkpoint.vae_scale_factor, shapes.batch)
    kept = {name: number for name, number in numbers.items() if name not in shapes.open}
    return {
        name: (tuple(kept.get(side, side) if isinstance(side, str) else side for side in shape), dtype)
        for name, (shape, dtype) in input_shapes(checkpoint, component).items()
    }


def probe_shapes(checkpoint: Checkpoint, component: str, shapes: Shapes) -> list[dict[str, tuple[int, ...]]]:
    """The inputs' shapes at each size that makes a difference to the component, with the full batch."""
    found = []
    for size in shapes.sizes:
        numbers = dimensions(size, checkpoint.vae_scale_factor, shapes.batch)
        named = input_shapes(checkpoint, component).items()
        concrete = {name: resolve(shape, numbers) for name, (shape, _) in named}
        if concrete not in found:
            found.append(concrete)
    return found


def about_bytes(value: ir.Value, numbers: Mapping[str, int]) -> int:
    """About how much a float32 tensor of a graph takes; of an expression of dimensions its factors are multiplied.

    A name that `numbers` does not have is taken for the largest side that the latents have.
    """
    largest = max(numbers["latent_height"], numbers["latent_width"])
    elements = 1
    for side in value.shape or ():
        factors = re.findall(r"\w+", str(side))
        elements *= math.prod(int(one) if one.isdigit() else numbers.get(one, largest) for one in factors)
    return 4 * elements
