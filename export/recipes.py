"""Recipes are TOML files: found by name or path, read and checked."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from ..compress.recipe import Calibration, Recipe
from ..runtime.bundle import COMPONENTS
from ..runtime.errors import UserError, unknown_name
from .checkpoint import PART_OF, Checkpoint
from .layout import is_of_component

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEMO_PICTURE = Path(__file__).parent.parent / "models" / "demo" / "picture.png"
RECIPES_FOLDER = Path(__file__).parent.parent / "models" / "recipes"
MAX_RECIPE_BYTES = 2**20
HINT = "docs/recipes.md lists keys and values"


def known_recipes() -> list[str]:
    """The names of the recipes that come with outzoom."""
    return sorted(file.stem for file in RECIPES_FOLDER.glob("*.toml"))


def read_recipe(name: str, budget_mb: float | None = None) -> Recipe:
    """The recipe of that name, or in the TOML file of that path; raises UserError that says what is wrong.

    `budget_mb`, for a mixed recipe, takes the place of the budget that it has.
    """
    file = Path(name) if name.endswith(".toml") else RECIPES_FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in known_recipes():
        raise unknown_name("recipe", name, known_recipes())
    if not file.is_file():
        raise UserError(f"there is no recipe file '{file}'", hint=f"outzoom has {', '.join(known_recipes())}")
    if file.stat().st_size > MAX_RECIPE_BYTES:
        raise UserError(f"'{file}' is over {MAX_RECIPE_BYTES} bytes; that is no recipe", hint=HINT)
    try:
        table = tomllib.loads(file.read_text("utf-8"))
        recipe = msgspec.convert({"name": file.stem, **table}, Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"the recipe '{file}' is wrong: {error}{_allowed(str(error))}", hint=HINT) from error
    if budget_mb is not None:
        recipe = _with_budget(recipe, budget_mb)
    return msgspec.structs.replace(recipe, calibration=_located(recipe.calibration, file))


def _with_budget(recipe: Recipe, budget_mb: float) -> Recipe:
    if recipe.mixed is None:
        raise UserError(
            f"the recipe '{recipe.name}' has a size that follows from its rules, and no budget to keep to",
            hint="--budget-mb is for recipes with a [mixed] table, such as 'mixed'",
        )
    if not budget_mb > 0:
        raise UserError(f"a budget is above 0 MB, got {budget_mb:g}")
    return msgspec.structs.replace(recipe, mixed=msgspec.structs.replace(recipe.mixed, budget_mb=budget_mb))


def _allowed(message: str) -> str:
    """What may stand in the place that a validation error names, for its end: the keys of a table, or the values."""
    place = re.search(r"`\$([^`]*)`$", message)
    if "unknown field" not in message and "Invalid" not in message:
        return ""
    schema = msgspec.json.schema(Recipe)
    nodes = _alternatives(schema, schema["$defs"])
    for key in re.findall(r"\.(\w+)|\[", place[1] if place else ""):
        children = [node.get("properties", {}).get(key, {}) if key else node.get("items", {}) for node in nodes]
        nodes = [node for child in children for node in _alternatives(child, schema["$defs"])]
    names = dict.fromkeys(str(name) for node in nodes for name in node.get("enum") or node.get("properties", ()))
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names)}" if names else ""


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a JSON schema that a value may fit, references looked up."""
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    if "anyOf" in node:
        return [found for part in node["anyOf"] for found in _alternatives(part, definitions)]
    return [node]


def _located(calibration: Calibration, file: Path) -> Calibration:
    """With the pictures where the recipe says that they are."""
    pictures = [file.parent / picture for picture in calibration.pictures]
    for picture in pictures:
        if not picture.is_file():
            raise UserError(
                f"the recipe '{file}' calibrates on '{picture}', and there is no such file",
                hint="paths are relative to the recipe; without any, it is the demo model's own picture",
            )
    return msgspec.structs.replace(calibration, pictures=tuple(str(picture) for picture in pictures))


def calibration_pictures(recipe: Recipe) -> list[Path]:
    """The pictures that a recipe's calibration zooms out of."""
    return [Path(picture) for picture in recipe.calibration.pictures] or [DEMO_PICTURE]


def check_patterns(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raises UserError for a pattern of the recipe that no layer's name matches."""
    names = {component: _layer_names(checkpoint, component) for component in COMPONENTS}
    for number, rule in enumerate(recipe.rules, start=1):
        within = [name for component in rule.components for name in names[component]]
        _check_matches(f"rule {number} of the recipe '{recipe.name}'", "layer", rule.components, rule.layers, within)
    if (smooth := recipe.smooth) is not None:
        within = [name for component in smooth.components for name in names[component]]
        _check_matches(f"smooth of the recipe '{recipe.name}'", "layer", smooth.components, smooth.layers, within)
    for number, entry in enumerate(recipe.structured, start=1):
        within = [name for component in entry.components for name in names[component] if entry.is_kind(name)]
        where = f"structured {number} of the recipe '{recipe.name}'"
        if not within:
            raise UserError(f"{where}: {', '.join(entry.components)} has no {entry.kind} that can go", hint=HINT)
        _check_matches(where, f"block with {entry.kind}", entry.components, entry.blocks, within)


def _check_matches(
    where: str, kind: str, components: tuple[str, ...], patterns: tuple[str, ...], names: list[str]
) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"{where}: no {kind} of {', '.join(components)} is called '{pattern}'",
                hint=f"{kind.split()[0]}s are called like '{names[len(names) // 2]}'",
            )


def _layer_names(checkpoint: Checkpoint, component: str) -> list[str]:
    return [
        name.removeprefix("text_model.")
        for name, stored in checkpoint.weights(PART_OF[component]).items()
        if len(stored.shape) >= 2 and is_of_component(name, component)
    ]
