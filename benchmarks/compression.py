"""Our recipes beside other compressors, on one UNet: what compressing takes, and what comes of it.

    python -m outzoom.benchmarks.compression CHECKPOINT --work DIR --out RESULT.json --rivals DIR_OF_ENVIRONMENTS

All begin with the same UNet in float32 and the same inputs of it to calibrate on, recorded while outzoom zooms. Each
compresses in processes of its own, one after another. What they made is run on inputs of another zoom and compared
with the UNet in float32; then the engines of a target are timed in turn. Each figure is in the result file as soon as
it is known, and a second run goes on where the first stopped. What fails is there with its error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..runtime.backends import Array
from ..runtime.errors import OutzoomError
from ..runtime.files import atomic_file
from .compressors import HELD_OUT_PROMPT, HELD_OUT_SEED, TORCH, Compressor, Ours, Rival, Task, rivals
from .engines import EngineFile, outputs, time_in_turn
from .machine import describe_machine
from .results import Latency, ratio_of
from .scripts import complain

TARGETS = ("openvino-cpu", "onnxruntime")
RECIPES = ("fp16", "int8", "int4", str(Path(__file__).parent / "recipes" / "linear-int4.toml"))
REFERENCE = "fp32"
COMMAND = "python -m outzoom.benchmarks.compression CHECKPOINT --work DIR --out RESULT.json --rivals ENVIRONMENTS"
FAILURES = (OutzoomError, OSError, MemoryError, RuntimeError, ValueError, KeyError)  # whatever a package raises


@dataclass(frozen=True)
class ResultFile:
    """A JSON file that grows."""

    path: Path
    say: Callable[[str], None] = print

    def read(self) -> dict[str, Any]:
        """All figures so far."""
        return json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}

    def save(self, part: str | None, figures: dict[str, Any]) -> None:
        """Add figures at the top, or to one of the parts."""
        result = self.read()
        if part is None:
            result |= figures
        else:
            result[part] = {**result.get(part, {}), **figures}
        with atomic_file(self.path) as partial:
            partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
        self.say(json.dumps(figures))


def measure(
    task: Task, compressors: Sequence[Compressor], file: ResultFile, rounds: int,
    only: Sequence[str] = ("*",), again: bool = False,
) -> None:  # fmt: skip
    """Compress and compare what `file` does not have yet, or, with `again`, once more; then time all that it has.

    `only` are patterns of names; the references in float32 are always among them. Without rounds nothing is timed.
    """
    task.prepare()
    exact = Ours("onnxruntime", REFERENCE)
    exact.compress(task)
    references = [run.output for run in outputs(_engine(exact, task, {}), task.held_out)]
    for compressor in compressors:
        if any(fnmatchcase(compressor.name, pattern) for pattern in (f"*-{REFERENCE}", *only)):
            known = file.read().get("results", {}).get(compressor.name)
            if known is None or again or not _is_there(compressor, task, known):
                file.save("results", {compressor.name: _measured(compressor, task, references)})
    for target in dict.fromkeys(one.target for one in compressors if one.target != TORCH and rounds):
        _time(task, target, compressors, file, rounds, again)


def _is_there(compressor: Compressor, task: Task, figures: dict[str, Any]) -> bool:
    """Whether there is no need to compress again."""
    return "error" in figures or compressor.target == TORCH or compressor.engine(task, figures) is not None


def _measured(compressor: Compressor, task: Task, references: Sequence[Array]) -> dict[str, Any]:
    """What compressing took and how near the result is; or the error that stopped it."""
    figures: dict[str, Any] = {"target": compressor.target, "load_before": _load()}
    try:
        figures |= compressor.compress(task)
        if isinstance(compressor, Rival) and compressor.target == TORCH:
            made = [np.load(path) for path in sorted(compressor.outputs(task).glob("*.npy"))]
            return {**figures, **distances(made, references)}
        runs = outputs(_engine(compressor, task, figures), task.held_out)
        figures["running_peak_rss_bytes"] = max(run.peak_rss_bytes for run in runs)
        return {**figures, **distances([run.output for run in runs], references)}
    except FAILURES as error:
        return {**figures, "error": _text(error, task)}


def _engine(compressor: Compressor, task: Task, figures: dict[str, Any]) -> EngineFile:
    engine = compressor.engine(task, figures)
    if engine is None:
        raise OutzoomError(f"{compressor.name} left no engine")
    return engine


def distances(made: Sequence[Array], references: Sequence[Array]) -> dict[str, Any]:
    """Relative L2 error |made - reference| / |reference| and PSNR (None: equal to the last bit) of outputs.

    Means over the runs, and the worst of them. Raises OutzoomError for an output that is not finite, ValueError when
    their number or shapes differ.
    """
    from ..export.parity import tensor_psnr_db

    pairs = list(zip(made, references, strict=True))
    if not all(np.isfinite(one).all() for one in made):
        raise OutzoomError("its output is not finite")
    psnr_db = [tensor_psnr_db(reference, one) for one, reference in pairs]
    errors = [float(np.linalg.norm(one - reference) / np.linalg.norm(reference)) for one, reference in pairs]
    exact = not np.isfinite(psnr_db).all()
    return {
        "relative_l2": {"mean": round(float(np.mean(errors)), 6), "max": round(max(errors), 6)},
        "psnr_db": None if exact else {"mean": round(float(np.mean(psnr_db)), 2), "min": round(min(psnr_db), 2)},
    }


def _time(
    task: Task, target: str, compressors: Iterable[Compressor], file: ResultFile, rounds: int, again: bool
) -> None:
    """Time the engines of a target in turn, as many at a time as memory holds, unless just these are timed already."""
    import psutil

    result = file.read()
    engines = {
        one.name: _engine(one, task, result["results"][one.name])
        for one in compressors if one.target == target and "error" not in result["results"].get(one.name, {"error": ""})
    }  # fmt: skip
    known = result.get("timing", {}).get(target)
    reference = Ours(target, REFERENCE).name
    if reference not in engines or (known is not None and set(known["engines"]) == set(engines) and not again):
        return
    load = _load()
    peaks = {name: result["results"][name]["running_peak_rss_bytes"] for name in engines}
    groups = in_memory(peaks, reference, psutil.virtual_memory().available)
    timed: dict[str, Any] = {}
    try:
        for group in groups:
            samples_ms = time_in_turn({name: engines[name] for name in group}, task.held_out[0], rounds)
            exact_ms = samples_ms[reference]
            for name, ms in samples_ms.items():
                timed.setdefault(name, {**msgspec.to_builtins(Latency.of(ms)), "ratio_to_fp32": ratio_of(ms, exact_ms)})
    except FAILURES as error:
        file.save("timing", {target: {"load_before": load, "engines": {}, "error": _text(error, task)}})
        return
    file.save("timing", {target: {"rounds": rounds, "load_before": load, "groups": groups, "engines": timed}})


def in_memory(peaks_bytes: dict[str, int], reference: str, available_bytes: int) -> list[list[str]]:
    """Groups of engines that fit into memory at a time, each with the reference; at least one other is in each."""
    groups: list[list[str]] = []
    for name in peaks_bytes:
        if name == reference:
            continue
        if not groups or sum(peaks_bytes[one] for one in (*groups[-1], name)) > available_bytes:
            groups.append([reference])
        groups[-1].append(name)
    return groups or [[reference]]


def _load() -> float:
    """The load average of the last minute: what else runs makes times too long."""
    import psutil

    return round(float(psutil.getloadavg()[0]), 2)


def _text(error: Exception, task: Task) -> str:
    """What an error says, the folder of the work being DIR."""
    text = str(error) if isinstance(error, OutzoomError) else f"{type(error).__name__}: {error}"
    return text.replace(str(task.work), "DIR")


def main() -> int:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--work", type=Path, required=True, help="for models and feeds; several times the UNet's size")
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    parser.add_argument("--rivals", type=Path, help="the folder of the rivals' environments; without it, ours alone")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names, or TOML files")
    parser.add_argument("--keyframes", type=int, default=1, help="painted for each of the recipe's prompts")
    parser.add_argument("--steps", type=int, default=4, help="of each keyframe, to calibrate on")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs of each engine; 0: none is timed")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, beside the fp32 references")
    parser.add_argument("--again", action="store_true", help="measure what the result file has, too")
    args = parser.parse_args()

    try:
        _run(args)
    except OutzoomError as error:
        return complain(error)
    return 0


def _run(args: argparse.Namespace) -> None:
    machine = describe_machine()
    task = Task(args.checkpoint, args.work.absolute(), args.keyframes, args.steps)
    ours = [Ours(target, recipe) for target in TARGETS for recipe in (REFERENCE, *args.recipes)]
    compressors: list[Compressor] = [*ours, *(rivals(args.rivals) if args.rivals else ())]
    file = ResultFile(args.out)
    file.save(
        None,
        {
            "command": COMMAND,
            "date": time.strftime("%Y-%m-%d"), "checkpoint": task.opened.name, "size": task.opened.native_side,
            "machine": machine.cpu_model, "cores": machine.usable_cores, "packages": machine.packages,
            "calibration": {"keyframes": args.keyframes, "steps": args.steps},
            "held_out": {"prompt": HELD_OUT_PROMPT, "seed": HELD_OUT_SEED},
        },
    )  # fmt: skip
    measure(task, compressors, file, args.rounds, args.only, args.again)
    file.save(None, {"runs": len(task.feeds), "held_out_runs": len(task.held_out)})


if __name__ == "__main__":
    sys.exit(main())
