"""How long engines take to open: the first time on a machine, and then from what was kept.

    python -m outzoom.benchmarks.opening BUNDLE... --out RESULT.json

Each round is `outzoom compile` in a process of its own with an empty cache: it opens every engine, closes it, and opens
it again. The files were read before, so that they are in the page cache; on a device just switched on add the time to
read them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import msgspec
import numpy as np

from ..runtime import open_manifest
from ..runtime.cache import VARIABLE
from ..runtime.errors import OutzoomError
from .machine import describe_machine
from .process import child_env, run_measured
from .results import Machine
from .scripts import complain, write_json

COMMAND = "python -m outzoom.benchmarks.opening BUNDLE... --out RESULT.json"


class Opened(msgspec.Struct, frozen=True):
    """The seconds that an engine takes to open, in each round: cold, and warm from `kept_bytes` of the cache."""

    cold_seconds: tuple[float, ...]
    warm_seconds: tuple[float, ...]
    kept_bytes: int


class OpenedBundle(msgspec.Struct, frozen=True):
    """The engines of a bundle by component."""

    name: str
    size_bytes: int
    components: dict[str, Opened]


class OpeningResult(msgspec.Struct, frozen=True):
    """The contents of the result file."""

    command: str
    date: str
    checkpoint: str
    size: tuple[int, int]
    machine: Machine
    bundles: tuple[OpenedBundle, ...]


def measured(bundle: Path, rounds: int) -> OpenedBundle:
    """Open the engines of a bundle, `rounds` times in processes of their own."""
    opened = open_manifest(bundle, verify=True)  # which reads all of its files
    found = [_compiled(bundle) for _ in range(rounds)]
    components = {
        name: Opened(
            tuple(round(one[name]["open_seconds"], 4) for one in found),
            tuple(round(one[name]["again_seconds"], 4) for one in found),
            int(found[0][name]["kept_bytes"]),
        )
        for name in found[0]
    }
    name = f"{opened.manifest.target}-{opened.manifest.recipe.name}"
    return OpenedBundle(name, opened.size_bytes, components)


def _compiled(bundle: Path) -> dict[str, dict[str, float]]:
    """What `outzoom compile` says of each component; the bundle has one size."""
    with TemporaryDirectory() as cache, TemporaryFile() as printed:
        command = [sys.executable, "-m", "outzoom", "compile", str(bundle), "--json"]
        run_measured(command, printed, {**child_env(), VARIABLE: cache})
        printed.seek(0)
        return {one["component"]: one for one in json.loads(printed.read())["engines"]}


def run(bundles: Sequence[Path], rounds: int, out: Path) -> None:
    """Measure all bundles; the result is written after each."""
    machine, first = describe_machine(), open_manifest(bundles[0], verify=False).manifest
    found: list[OpenedBundle] = []
    for bundle in bundles:
        found.append(measured(bundle, rounds))
        unet = found[-1].components["unet"]
        print(f"{bundle}: UNet {np.median(unet.cold_seconds):.2f} s, then {np.median(unet.warm_seconds):.2f} s")
        date = time.strftime("%Y-%m-%d")
        write_json(OpeningResult(COMMAND, date, first.source.name, first.sizes[0], machine, tuple(found)), out)


def main() -> int:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    args = parser.parse_args()
    try:
        run(args.bundles, args.rounds, args.out)
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
