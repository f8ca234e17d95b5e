"""Recipes: what is done to the weights, in TOML files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ..runtime.errors import UserError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES_FOLDER = Path(__file__).parent.parent / "models" / "recipes"
MAX_RECIPE_BYTES = 2**20
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
HINT = "docs/recipes.md lists keys and values"


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a bundle's weights are stored, what it computes in, and the least parity it may have."""

    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]  # becomes part of a folder's name
    description: str
    weights: Literal["float32", "float16"]
    compute: Literal["float32", "fastest"]
    min_psnr_db: Annotated[float, msgspec.Meta(ge=0, le=200)]


def known_recipes() -> list[str]:
    """The names of the recipes that come with outzoom."""
    return sorted(file.stem for file in RECIPES_FOLDER.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """The recipe of that name, or in the TOML file of that path; raises UserError that says what is wrong."""
    file = Path(name) if name.endswith(".toml") else RECIPES_FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in known_recipes():
        raise unknown_name("recipe", name, known_recipes())
    if not file.is_file():
        raise UserError(f"there is no recipe file '{file}'", hint=f"outzoom has {', '.join(known_recipes())}")
    if file.stat().st_size > MAX_RECIPE_BYTES:
        raise UserError(f"'{file}' is over {MAX_RECIPE_BYTES} bytes; that is no recipe", hint=HINT)
    try:
        table = tomllib.loads(file.read_text("utf-8"))
        return msgspec.convert({"name": file.stem, **table}, Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"the recipe '{file}' is wrong: {error}", hint=HINT) from error
