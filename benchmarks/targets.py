"""Which recipe goes for which target: every bundle is really built, or refused with the reason.

    python -m outzoom.benchmarks.targets CHECKPOINT --work DIR --out benchmarks/results/targets.json

All targets of a recipe are built together; a second run goes on where the first stopped. Where a target's device is
not in the machine, its engines are not run: the result says on what the parity was measured instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from ..export import Plan, Recipe, Shapes, build, open_checkpoint, read_recipe
from ..export.checkpoint import Checkpoint
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


def measured(checkpoint: Checkpoint, targets: Sequence[str], recipe: Recipe, work: Path, jobs: int) -> Iterator[Entry]:
    """Build bundles with a recipe, in one plan: what targets have in common is made once."""
    shapes = Shapes(((checkpoint.native_side, checkpoint.native_side),))
    plan = Plan(checkpoint, (), (recipe,), shapes, work / "out", jobs, cache=work / "cache")
    accepted = []
    for target in targets:
        if reason := _refused(plan, target):
            yield Entry(target, recipe.name, _made(target), refused=reason)
        else:
            accepted.append(target)
    yield from _built(replace(plan, targets=tuple(accepted)))


def _refused(plan: Plan, target: str) -> str | None:
    """Why the plan's recipe does not go for a target, as far as shows before anything is built."""
    if reason := refusal(plan.recipes[0], target):
        return reason
    try:
        replace(plan, targets=(target,))
    except OutzoomError as error:
        return str(error)
    return None


def _built(plan: Plan) -> Iterator[Entry]:
    """What becomes of each target; after one that fails the others are built."""
    recipe, left = plan.recipes[0].name, list(plan.targets)
    try:
        for bundle in build(plan):
            parts = {name: _part(bundle, name) for name in bundle.manifest.components}
            cpu_seconds = round(sum(stage.cpu_seconds or 0 for stage in bundle.manifest.build.stages), 1)
            target = left.pop(0)
            yield Entry(target, recipe, _made(target), parts, bundle.manifest.checked_on, cpu_seconds)
    except OutzoomError as error:
        target = left.pop(0)
        yield Entry(target, recipe, _made(target), refused=str(error))
        yield from _built(replace(plan, targets=tuple(left)))


def _made(target: str) -> Literal["ahead", "on device"]:
    return "on device" if FORMS[target].on_device else "ahead"


def _part(bundle: Bundle, component: str) -> Part:
    parity_db = bundle.manifest.components[component].parity_psnr_db
    return Part(bundle.component_size_bytes(component), None if parity_db is None else round(parity_db, 1))


def run(checkpoint: str, targets: Sequence[str], recipes: Sequence[str], work: Path, out: Path, jobs: int = 1) -> None:
    """Build what the result file does not have yet."""
    known = msgspec.json.decode(out.read_bytes(), type=TargetsResult).entries if out.exists() else ()
    entries = {(one.target, one.recipe): one for one in known}
    opened = open_checkpoint(checkpoint)
    for recipe in map(read_recipe, recipes):
        missing = [target for target in targets if (target, recipe.name) not in entries]
        for entry in measured(opened, missing, recipe, work, jobs):
            entries[entry.target, entry.recipe] = entry
            print(f"{entry.target} {entry.recipe}: {entry.refused or 'built'}", file=sys.stderr)
            _write(opened.name, tuple(sorted(entries.values(), key=_place)), out)


def _place(entry: Entry) -> tuple[int, int]:
    """Where in the result an entry stands: by target, then by recipe, files of the user's own last."""
    return list(FORMS).index(entry.target), (*RECIPES, entry.recipe).index(entry.recipe)


def _write(name: str, entries: tuple[Entry, ...], out: Path) -> None:
    command = f"python -m outzoom.benchmarks.targets CHECKPOINT --work DIR --out {out.name}"
    result = TargetsResult(
        SCHEMA_VERSION, command, time.strftime("%Y-%m-%d"), version("outzoom"), name,
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
    parser.add_argument("--jobs", type=int, default=1, help="stages at a time")
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    args = parser.parse_args()
    try:
        run(args.checkpoint, args.targets, args.recipes, args.work, args.out, args.jobs)
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
