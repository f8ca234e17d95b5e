"""A keyframe of ours beside openvino.genai's inpainting pipeline, and what each takes in memory.

    python -m outzoom.benchmarks.keyframe BUNDLE --genai MODEL --python GENAI_PYTHON --out RESULT.json

MODEL is what `optimum-cli export openvino` makes of the checkpoint that BUNDLE was built of; GENAI_PYTHON has the
environment of benchmarks/rivals/openvino-genai.txt. Every side has a process of its own, with the same picture, mask,
prompt, steps and guidance, and they paint in turn; the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..runtime import PRESETS, OutzoomError, load_image, open_bundle, open_manifest, preset, save_png
from ..runtime.geometry import outside_mask, paste_centered
from ..runtime.machine import parse_bytes, peak_rss_bytes
from .machine import describe_machine
from .results import ratio_of
from .settings import DEMO_PICTURE, DEMO_PROMPT

MODULE = "outzoom.benchmarks.keyframe"
GENAI, GENAI_SCRIPT = "openvino.genai", Path(__file__).parent / "rivals" / "genai_keyframe.py"
SCALE = 0.5  # of the known picture in the keyframe
COMMAND = "python -m outzoom.benchmarks.keyframe BUNDLE --genai MODEL --python GENAI_PYTHON --out RESULT.json"


@dataclass(frozen=True)
class Side:
    """One that paints: a command that says in a line of JSON that it is ready, and then what each picture took."""

    name: str
    command: tuple[str, ...]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Its process; ends it afterwards."""
        with subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()


def said(side: Side, process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a side; raises OutzoomError when it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise OutzoomError(f"{side.name} ended with exit code {process.wait()}", hint="what it printed says why")
    found: dict[str, Any] = json.loads(line)
    return found


def measure(sides: Sequence[Side], rounds: int) -> dict[str, dict[str, Any]]:
    """What each side said when it was ready, the seconds of its pictures, and its peak memory at the end."""
    with ExitStack() as stack:
        processes = {side: stack.enter_context(side.running()) for side in sides}
        figures = {side.name: said(side, process) for side, process in processes.items()}
        for number in range(rounds + 1):
            for side, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                made = said(side, process)
                figures[side.name]["peak_rss_bytes"] = made["peak_rss_bytes"]
                if number:
                    figures[side.name].setdefault("keyframe_seconds", []).append(made["seconds"])
    return figures


def serve(args: argparse.Namespace) -> None:
    """The body of our sides: paint a keyframe for each line that comes in."""
    started = time.perf_counter()
    limit_bytes = parse_bytes(args.memory_limit) if args.memory_limit else None
    with open_bundle(args.bundle, verify=False, memory_limit_bytes=limit_bytes, cache=args.cache) as zoom:
        print(json.dumps({"load_seconds": round(time.perf_counter() - started, 2)}), flush=True)
        picture, mask = load_image(args.picture), load_image(args.mask)[..., 0] > 127
        painting = replace(preset(args.serve), guidance=args.guidance)
        for _ in sys.stdin:
            started = time.perf_counter()
            made = zoom.inpainting.paint(picture, mask, args.prompt, painting)
            seconds = time.perf_counter() - started
            save_png(made, args.picture.with_name("made.png"))
            print(json.dumps({"seconds": round(seconds, 3), "peak_rss_bytes": peak_rss_bytes()}), flush=True)


def run(args: argparse.Namespace) -> None:
    """Measure all sides in turn and write the result."""
    machine = describe_machine()
    manifest = open_manifest(args.bundle, verify=False).manifest
    size = manifest.sizes[0]
    with TemporaryDirectory() as scratch:
        picture, mask = Path(scratch, "picture.png"), Path(scratch, "mask.png")
        shrunk = paste_centered(np.zeros((*size[::-1], 3), np.uint8), load_image(DEMO_PICTURE, size), SCALE)
        save_png(shrunk, picture)
        save_png(np.repeat(outside_mask(size, SCALE)[..., None], 3, axis=2).astype(np.uint8) * 255, mask)
        given: tuple[str, ...] = ("--picture", str(picture), "--mask", str(mask), "--prompt", DEMO_PROMPT)
        given += ("--guidance", str(args.guidance))
        mine = (*given, *(("--cache", str(args.cache)) if args.cache else ()))
        sides = [ours(name, args.bundle, name, mine) for name in args.presets]
        sides += [
            ours(f"quality, {limit}", args.segmented or args.bundle, "quality", (*mine, "--memory-limit", limit))
            for limit in args.limits
        ]
        if args.genai:
            theirs = ("--model", str(args.genai), "--steps", str(preset("quality").steps), "--out", f"{scratch}/1.png")
            sides.append(Side(GENAI, (str(args.python), str(GENAI_SCRIPT), *theirs, *given)))
        figures = measure(sides, args.rounds)
    reference = figures.get(GENAI)
    for figure in figures.values():
        if reference is not None:
            figure["ratio_to_genai"] = ratio_of(figure["keyframe_seconds"], reference["keyframe_seconds"])
    result = {
        "command": COMMAND, "date": time.strftime("%Y-%m-%d"), "machine": machine.cpu_model,
        "cores": machine.usable_cores, "load_before": machine.load_average_1min, "packages": machine.packages,
        "bundle": f"{manifest.target}-{manifest.recipe.name}", "checkpoint": manifest.source.name, "size": size,
        "guidance": args.guidance, "rounds": args.rounds, "sides": figures,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def ours(name: str, bundle: Path, preset: str, given: tuple[str, ...]) -> Side:
    """A side that this module serves."""
    return Side(name, (sys.executable, "-m", MODULE, str(bundle), "--serve", preset, *given))


def main() -> None:
    """Measure, or be one of those that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--genai", type=Path, help="the model's folder for openvino.genai; without it, ours alone")
    parser.add_argument("--python", type=Path, help="of the environment that has it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--limits", nargs="*", default=[], help="also paint with these limits of memory")
    parser.add_argument("--segmented", type=Path, help="the bundle for that, its UNet in segments")
    parser.add_argument("--serve", metavar="PRESET", help="be the side that paints with this preset")
    parser.add_argument("--memory-limit", default="")
    parser.add_argument("--cache", type=Path, help="keep engines here as they are opened")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--prompt")
    args = parser.parse_args()
    (serve if args.serve else run)(args)


if __name__ == "__main__":
    main()
