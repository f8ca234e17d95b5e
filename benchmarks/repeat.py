"""How far runs of one scenario lie apart.

    python -m outzoom.benchmarks.repeat RESULTS.json RESULTS.json ... --out SPREAD.json

The files are of `outzoom bench`, the second and later ones with `--like` the first. The spread is what `outzoom bench
--compare BEFORE AFTER --noise SPREAD.json` takes for noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..runtime.errors import OutzoomError, UserError
from .results import BundleResult, Machine, Results, read_results
from .scripts import complain, read_json, write_json


def figures_of(bundle: BundleResult) -> dict[str, float]:
    """What differs from run to run, under the names that `compare` has for it, and two more."""
    return {
        "keyframe_ms": bundle.zoom.keyframe.median_ms,
        "between_frame_ms": bundle.zoom.between_frame.median_ms,
        "frames_per_second": bundle.zoom.frames_per_second,
        "open_ms": bundle.open.from_process_start_ms,
        "peak_rss_bytes": float(bundle.memory.peak_rss_bytes),
        **{f"{name}_ms": one.latency.median_ms for name, one in bundle.components.items()},
    }


class Spread(msgspec.Struct, frozen=True):
    """A figure in each run; `spread` is the largest over the smallest, less 1."""

    values: tuple[float, ...]
    spread: float


class Repeated(msgspec.Struct, frozen=True):
    """The contents of the result file; figures by bundle, loads of the machine before each run."""

    created_utc: tuple[str, ...]
    machine: Machine
    load_averages: tuple[float, ...]
    bundles: dict[str, dict[str, Spread]]


def repeated(runs: Sequence[Results]) -> Repeated:
    """The spread of every figure of every bundle. Raises UserError if the runs are not of one scenario."""
    first = runs[0]
    names = [bundle.name for bundle in first.bundles]
    for run in runs[1:]:
        scenario = run.settings, run.picture_sha256, [bundle.name for bundle in run.bundles]
        if scenario != (first.settings, first.picture_sha256, names):
            raise UserError(
                f"the run of {run.created_utc} is of another scenario than that of {first.created_utc}",
                hint="outzoom bench --like FIRST with the same bundles",
            )
    bundles = {name: _spreads([figures_of(run.bundles[index]) for run in runs]) for index, name in enumerate(names)}
    loads = tuple(run.machine.load_average_1min for run in runs)
    return Repeated(tuple(run.created_utc for run in runs), first.machine, loads, bundles)


def read_repeated(path: Path) -> Repeated:
    """What this script wrote. Raises UserError for a file that is not that."""
    hint = "python -m outzoom.benchmarks.repeat RESULTS.json RESULTS.json ... --out SPREAD.json"
    return read_json(path, Repeated, "does not say how far runs lie apart", hint)


def _spreads(figures: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Of each figure that all runs have."""
    common = [name for name in figures[0] if all(name in one for one in figures)]
    return {name: _spread([one[name] for one in figures]) for name in common}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(tuple(values), round(max(values) / min(values) - 1, 4))


def main() -> int:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        found = repeated([read_results(file) for file in args.runs])
    except OutzoomError as error:
        return complain(error)
    write_json(found, args.out)
    for name, figures in found.bundles.items():
        print(name, *(f"{figure} {one.spread:.0%}" for figure, one in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
