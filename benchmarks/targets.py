"""Which recipe goes for which target: every bundle is really built, or refused with the reason.

    python -m outzoom.benchmarks.targets CHECKPOINT --work DIR --out benchmarks/results/targets.json

Each bundle is built by itself; a second run goes on where the first stopped. Where a target's device is not in the
machine, its engines are not run: the result says on what the parity was measured instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from ..export import Plan, Recipe, Shapes, build, open_checkpoint, read_recipe
from ..export.targets import FORMS, refusal
from ..runtime.backends import BACKENDS
from ..runtime.bundle import Bundle
from ..runtime.errors import OutzoomError
from .machine import describe_machine
from .results import Machine
from .scripts import complain, write_json

SCHEMA_VERSION = 1
RECIPES = ("fp32", "fp16", "int8", "int4", "kmeans4", "pruned", "sparse24", "narrow", "mixed", "a16w8", "a8w8")


class Part(msgspec.Struct, frozen=True):
    """A component of a bundle that was built; parity in dB, None: equal to the last bit."""

    size_bytes: int
    parity_psnr_db: float | None


class Entry(msgspec.Struct, frozen=True):
    """A target and a recipe: what was built, and on which target's engines it was checked; or why it is refused.

    `made`: when there is an engine, with the bundle or on the device, of what the bundle has. `cpu_seconds`: of all the
    stages behind the bundle, those included that others share, and of all cores.
    """

    target: str
    recipe: str
    made: Literal["ahead", "on device"]
    components: dict[str, Part] = {}
    checked_on: str | None = None
    cpu_seconds: float | None = None
    refused: str | None = None


class TargetsResult(msgspec.Struct, frozen=True):
    """The contents of the result file; `absent`: why a target's engines do not run on the machine."""

    schema_version: int
    command: str
    date: str
    outzoom_version: str
    checkpoint: str
    machine: Machine
    absent: dict[str, str | None]
    entries: tuple[Entry, ...]


def measured(checkpoint: str, target: str, recipe: Recipe, work: Path) -> Entry:
    """Build one bundle."""
    made: Literal["ahead", "on device"] = "on device" if FORMS[target].on_device else "ahead"
    if reason := refusal(recipe, target):
        return Entry(target, recipe.name, made, refused=reason)
    try:
        opened = open_checkpoint(checkpoint)
        shapes = Shapes(((opened.native_side, opened.native_side),))
        plan = Plan(opened, (target,), (recipe,), shapes, work / "out", cache=work / "cache")
        (bundle,) = build(plan)
    except OutzoomError as error:
        return Entry(target, recipe.name, made, refused=str(error))
    parts = {name: _part(bundle, name) for name in bundle.manifest.components}
    cpu_seconds = sum(stage.cpu_seconds or 0 for stage in bundle.manifest.build.stages)
    return Entry(target, recipe.name, made, parts, bundle.manifest.checked_on, round(cpu_seconds, 1))


def _part(bundle: Bundle, component: str) -> Part:
    parity_db = bundle.manifest.components[component].parity_psnr_db
    return Part(bundle.component_size_bytes(component), None if parity_db is None else round(parity_db, 1))


def run(checkpoint: str, targets: Sequence[str], recipes: Sequence[str], work: Path, out: Path) -> None:
    """Build what the result file does not have yet."""
    known = msgspec.json.decode(out.read_bytes(), type=TargetsResult).entries if out.exists() else ()
    entries = {(one.target, one.recipe): one for one in known}
    for recipe in map(read_recipe, recipes):
        for target in targets:
            key = (target, recipe.name)
            if key not in entries:
                entries[key] = measured(checkpoint, target, recipe, work)
                print(f"{' '.join(key)}: {entries[key].refused or 'built'}", file=sys.stderr)
                ordered = sorted(entries.values(), key=lambda one: list(FORMS).index(one.target))
                _write(checkpoint, tuple(ordered), out)


def _write(checkpoint: str, entries: tuple[Entry, ...], out: Path) -> None:
    command = f"python -m outzoom.benchmarks.targets CHECKPOINT --work DIR --out {out.name}"
    result = TargetsResult(
        SCHEMA_VERSION, command, time.strftime("%Y-%m-%d"), version("outzoom"), open_checkpoint(checkpoint).name,
        describe_machine(), {name: backend.absent() for name, backend in BACKENDS.items()}, entries,
    )  # fmt: skip
    write_json(result, out)


def main() -> int:
    """Build all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--targets", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names, or TOML files")
    parser.add_argument("--work", type=Path, required=True, help="for stages and bundles")
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    args = parser.parse_args()
    try:
        run(args.checkpoint, args.targets, args.recipes, args.work, args.out)
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
