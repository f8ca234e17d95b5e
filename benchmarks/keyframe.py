"""A keyframe of ours beside other pipelines of the same checkpoint, and what each takes in memory.

    python -m outzoom.benchmarks.keyframe BUNDLE... --rival openvino.genai PYTHON MODEL --rival ... --out RESULT.json

PYTHON has the environment of benchmarks/rivals/openvino-genai.txt, of optimum.txt for diffusers and optimum, though
diffusers may be ours, or of stable-diffusion-cpp.txt. MODEL is what `optimum-cli export openvino` or `export onnx` made
of the checkpoint that the bundles are of; for diffusers it is the checkpoint, for stable-diffusion.cpp the same in one
.safetensors file of the original layout. Every side has a process of its own, with the same picture, mask, prompt,
steps and guidance, and they paint in turn; the first round is not counted. Ratios are to the first rival.
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

import msgspec
import numpy as np

from ..runtime import PRESETS, OutzoomError, load_image, open_bundle, open_manifest, preset, save_png
from ..runtime.geometry import outside_mask, paste_centered
from ..runtime.machine import parse_bytes, peak_rss_bytes
from ..runtime.shapes import Size
from .keyframe_result import KeyframeResult, SideResult
from .machine import describe_machine
from .results import ratio_of
from .scripts import write_json
from .settings import DEMO_PICTURE, DEMO_PROMPT

MODULE = "outzoom.benchmarks.keyframe"
SCRIPTS = Path(__file__).parent / "rivals"
RIVALS = {  # scripts, and arguments of their own
    "openvino.genai": ("genai_keyframe.py",),
    "diffusers": ("diffusers_keyframe.py",),
    "diffusers-bfloat16": ("diffusers_keyframe.py", "--dtype", "bfloat16"),
    "optimum-onnxruntime": ("optimum_keyframe.py",),
    "optimum-openvino": ("optimum_keyframe.py",),
    "stable-diffusion.cpp": ("stable_diffusion_cpp_keyframe.py",),
}
SCALE = 0.5  # of the known picture in the keyframe
COMMAND = "python -m outzoom.benchmarks.keyframe BUNDLE... --rival NAME PYTHON MODEL ... --out RESULT.json"


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
    with open_bundle(args.bundles[0], verify=False, memory_limit_bytes=limit_bytes, cache=args.cache) as zoom:
        print(json.dumps({"load_seconds": round(time.perf_counter() - started, 2)}), flush=True)
        picture, mask = load_image(args.picture), load_image(args.mask)[..., 0] > 127
        painting = replace(preset(args.serve), guidance=args.guidance)
        if args.steps is not None:
            painting = replace(painting, steps=args.steps)
        for _ in sys.stdin:
            started = time.perf_counter()
            made = zoom.inpainting.paint(picture, mask, args.prompt, painting)
            seconds = time.perf_counter() - started
            save_png(made, args.picture.with_name("made.png"))
            print(json.dumps({"seconds": round(seconds, 3), "peak_rss_bytes": peak_rss_bytes()}), flush=True)


def run(args: argparse.Namespace) -> None:
    """Measure all sides in turn and write the result."""
    machine = describe_machine()
    manifests = [open_manifest(bundle, verify=False).manifest for bundle in args.bundles]
    size = manifests[0].sizes[0]
    with TemporaryDirectory() as scratch:
        figures = measure(sides(args, scratch, given(args, Path(scratch), size)), args.rounds)
    reference = args.rival[0][0] if args.rival else None
    for figure in figures.values():
        if reference is not None:
            figure["ratio"] = ratio_of(figure["keyframe_seconds"], figures[reference]["keyframe_seconds"])
    result = KeyframeResult(
        COMMAND, time.strftime("%Y-%m-%d"), machine.cpu_model, machine.usable_cores, machine.load_average_1min,
        machine.packages, ", ".join(f"{one.target}-{one.recipe.name}" for one in manifests),
        manifests[0].source.name, size, args.guidance, args.rounds, reference,
        msgspec.convert(figures, dict[str, SideResult]), args.steps,
    )  # fmt: skip
    write_json(result, args.out)


def given(args: argparse.Namespace, scratch: Path, size: Size) -> tuple[str, ...]:
    """What all sides are given: the picture shrunk, the mask around it, the prompt and the guidance."""
    picture, mask = scratch / "picture.png", scratch / "mask.png"
    shrunk = paste_centered(np.zeros((*size[::-1], 3), np.uint8), load_image(DEMO_PICTURE, size), SCALE)
    save_png(shrunk, picture)
    save_png(np.repeat(outside_mask(size, SCALE)[..., None], 3, axis=2).astype(np.uint8) * 255, mask)
    files = ("--picture", str(picture), "--mask", str(mask))
    return (*files, "--prompt", DEMO_PROMPT, "--guidance", str(args.guidance))


def sides(args: argparse.Namespace, scratch: str, all_take: tuple[str, ...]) -> list[Side]:
    """Ours, of each bundle with each preset and then with each limit of memory, and the rivals."""
    mine = (*all_take, *(("--cache", str(args.cache)) if args.cache else ()))
    mine += ("--steps", str(args.steps)) if args.steps is not None else ()
    steps = preset("quality").steps if args.steps is None else args.steps
    found = []
    for bundle in args.bundles:
        of_bundle = f"{bundle.resolve().name}, " if len(args.bundles) > 1 else ""
        found += [ours(f"{of_bundle}{name}", bundle, name, mine) for name in args.presets]
        found += [
            ours(f"{of_bundle}quality, {limit}", args.segmented or bundle, "quality", (*mine, "--memory-limit", limit))
            for limit in args.limits
        ]
    for name, python, model in args.rival:
        script, *own = RIVALS[name]
        theirs = ("--model", model, "--steps", str(steps), "--out", f"{scratch}/made.png")
        found.append(Side(name, (python, str(SCRIPTS / script), *theirs, *all_take, *own)))
    return found


def ours(name: str, bundle: Path, preset: str, given: tuple[str, ...]) -> Side:
    """A side that this module serves."""
    return Side(name, (sys.executable, "-m", MODULE, str(bundle), "--serve", preset, *given))


def main() -> None:
    """Measure, or be one of those that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument(
        "--rival", nargs=3, action="append", default=[], metavar=("NAME", "PYTHON", "MODEL"), help=", ".join(RIVALS)
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--steps", type=int, help="of a keyframe; default: what each preset has, the rivals 20")
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
    if unknown := [name for name, *_ in args.rival if name not in RIVALS]:
        parser.error(f"no rival is called {unknown[0]}; there are {', '.join(RIVALS)}")
    (serve if args.serve else run)(args)


if __name__ == "__main__":
    main()
