"""Run contexts for Snapdragon's HTP in emulation, those that `outzoom.benchmarks.qnn` left in the folder `cases`.

    python -m outzoom.benchmarks.qnn_emulation CASES --jobs N

A run takes up to a minute of one core, at full size far more. This needs no more than the runtime, so that the folder
can be taken to a machine that has many cores, and back. For every `inputs-NAME.npz` beside an engine it leaves
`output-NAME.npz`, by a process of its own; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ..runtime.backends import Array, Loading, backend_for
from ..runtime.errors import OutzoomError
from ..runtime.files import atomic_file
from .machine import describe_machine
from .scripts import complain

INPUTS, OUTPUT = "inputs-", "output-"
ENGINE = "model.onnx"


@dataclass(frozen=True)
class Emulated:
    """The first output of an engine, and what the run took of a processor, in all of its threads."""

    output: Array
    cpu_seconds: float
    cpu_model: str


def emulate(cases: Path, jobs: int, say: Callable[[str], None]) -> None:
    """Run what has not been run yet, so many at a time; raises OutzoomError for an engine that can't be."""
    waiting = [file for file in sorted(cases.rglob(f"{INPUTS}*.npz")) if not _output_file(file).exists()]
    with ProcessPoolExecutor(max(jobs, 1), mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(_run, file): file for file in waiting}
        for done, one in enumerate(as_completed(running), 1):
            say(f"{done} of {len(waiting)}: {running[one].relative_to(cases)}, {one.result():.0f} s of a core")


def read_output(case: Path, name: str) -> Emulated:
    """What an engine made of the inputs of that name."""
    with np.load(case / f"{OUTPUT}{name}.npz", allow_pickle=False) as found:
        return Emulated(found["output"], float(found["cpu_seconds"]), str(found["cpu_model"]))


def _run(file: Path) -> float:
    """Run the engine beside the inputs in a file; the seconds that the processor was busy."""
    engine = file.with_name(ENGINE)
    soc = file.parents[2].name
    with np.load(file, allow_pickle=False) as stored:
        feeds = dict(stored)
    loaded = backend_for(f"onnxruntime-qnn-{soc.lower()}").load(engine, Loading())
    started = time.process_time()
    output = next(iter(loaded.run(feeds).values()))
    seconds = time.process_time() - started
    with atomic_file(_output_file(file)) as partial, partial.open("wb") as stream:
        np.savez(stream, output=output, cpu_seconds=seconds, cpu_model=describe_machine().cpu_model)
    return seconds


def _output_file(file: Path) -> Path:
    return file.with_name(OUTPUT + file.name.removeprefix(INPUTS))


def main() -> int:
    """Run all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    try:
        emulate(args.cases, args.jobs, lambda text: print(text, file=sys.stderr, flush=True))
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
