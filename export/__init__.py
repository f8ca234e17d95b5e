"""From a checkpoint to bundles: `open_checkpoint`, `read_recipe`, `Plan`, `build`."""

from .build import Plan, build
from .checkpoint import Checkpoint, open_checkpoint
from .recipes import Recipe, known_recipes, read_recipe
from .shapes import Shapes

__all__ = ["Checkpoint", "Plan", "Recipe", "Shapes", "build", "known_recipes", "open_checkpoint", "read_recipe"]
