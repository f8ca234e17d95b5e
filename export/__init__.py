"""From a checkpoint to bundles: `open_checkpoint`, `read_recipe`, `Plan`, `estimate`, `build`."""

from ..compress.recipe import Recipe
from .build import build
from .checkpoint import Checkpoint, open_checkpoint
from .estimate import Estimate, check_disk, estimate
from .plan import Plan
from .recipes import known_recipes, read_recipe
from .shapes import Shapes

__all__ = [
    "Checkpoint",
    "Estimate",
    "Plan",
    "Recipe",
    "Shapes",
    "build",
    "check_disk",
    "estimate",
    "known_recipes",
    "open_checkpoint",
    "read_recipe",
]
