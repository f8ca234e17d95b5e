"""What the full-size model costs to build and to run, beside optimum's exporter and the engines' own speed.

    python models/make_checkpoint.py sd2-inpainting --out CHECKPOINT
    python -m outzoom.benchmarks.full_size CHECKPOINT --work DIR --optimum DIR/bin/optimum-cli

Each part is measured in processes of its own, one after another, and its figures are added to the result file at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..export import Plan, Shapes, open_checkpoint, read_recipe, stages
from ..runtime import Painting, open_bundle, open_manifest
from ..runtime.inpainting import Inpainting
from .machine import describe_machine
from .measure import random_feeds
from .process import run_measured

RESULT = Path(__file__).parent / "results" / "full-size.json"
RECIPE = "fp16"
TARGETS = ("openvino-cpu", "onnxruntime")
STEPS, KEYFRAMES, GUIDANCE = 4, 2, 7.5


def onnx_export(checkpoint: Path, work: Path, jobs: int) -> dict[str, Any]:
    """The ONNX files of all four components, nothing else: the stages that trace and that write ONNX."""
    opened = open_checkpoint(str(checkpoint))
    shapes = Shapes(((opened.native_side, opened.native_side),))
    plan = Plan(opened, TARGETS[:1], (read_recipe(RECIPE),), shapes, work / "onnx", jobs)
    wanted = [stage.needs[0] for stage in plan.bundles[0].engines.values()]
    started = time.monotonic()
    stages.run(wanted, plan.cache_folder, jobs, lambda event: None)
    seconds = time.monotonic() - started
    ran = {stage.key: stage for last in wanted for stage in (last, *last.needs)}
    records = [record for stage in ran.values() if (record := stage.record(plan.cache_folder)) is not None]
    files = sum(file.stat().st_size for file in plan.cache_folder.rglob("model.onnx*"))
    shutil.rmtree(work / "onnx")
    return {
        "wall_seconds": round(seconds, 1),
        "peak_rss_bytes_of_any_process": max(record.peak_memory_bytes for record in records),
        "size_bytes": files,
        "stages": {record.name: [record.seconds, record.peak_memory_bytes] for record in records},
    }


def build(checkpoint: Path, work: Path, target: str, jobs: int) -> dict[str, Any]:
    """`export-all` for a target, and again when there is nothing to do."""
    command = [sys.executable, "-m", "outzoom", "export-all", str(checkpoint), "--target", target]
    command += ["--recipe", RECIPE, "--out", str(work / "bundles"), "--jobs", str(jobs), "--json"]
    made, again = run_measured(command), run_measured(command)
    manifest = open_manifest(work / "bundles" / f"{target}-{RECIPE}").manifest
    peak = max(made["peak_rss_bytes_of_any_process"], *(s.peak_memory_bytes for s in manifest.build.stages))
    return {
        **made,
        "peak_rss_bytes_of_any_process": peak,
        "rebuild_wall_seconds": again["wall_seconds"],
        "size_bytes": sum(entry.size_bytes for entry in manifest.files.values()),
        "parity_psnr_db": {name: component.parity_psnr_db for name, component in manifest.components.items()},
        "stages": {stage.name: [stage.seconds, stage.peak_memory_bytes] for stage in manifest.build.stages},
    }


def beside_optimum(checkpoint: Path, work: Path, optimum: Path, jobs: int, rounds: int) -> list[dict[str, Any]]:
    """The build for OpenVINO and optimum's, one after the other in each round; neither is always the first."""
    theirs = [str(optimum), "export", "openvino", "-m", str(checkpoint), "--task", "inpainting"]
    theirs += ["--weight-format", "fp16", str(work / "optimum")]
    found = []
    for number in range(rounds):
        measured: dict[str, Any] = {}
        for side in ("ours", "optimum") if number % 2 == 0 else ("optimum", "ours"):
            for folder in ("bundles", "optimum"):
                shutil.rmtree(work / folder, ignore_errors=True)
            both = partial(run_measured, theirs), partial(build, checkpoint, work, TARGETS[0], jobs)
            measured[side] = both[side == "ours"]()
        found.append(
            {side: {key: one[key] for key in ("wall_seconds", "peak_rss_bytes_of_any_process")}
             for side, one in measured.items()}
        )  # fmt: skip
    return found


def zoom(bundle: Path) -> dict[str, Any]:
    """Keyframes of a zoom at the model's size: seconds of each UNet call, and of the bare engine right after."""
    ticks: list[float] = []
    rng = np.random.default_rng(0)
    with open_bundle(bundle, verify=False) as opened:
        picture = rng.integers(0, 256, (opened.size[1], opened.size[0], 3), np.uint8)
        painting = Painting(steps=STEPS, guidance=GUIDANCE)
        started = time.monotonic()
        keyframes = opened.keyframes(picture, "a reef", 0.5, painting, lambda: ticks.append(time.monotonic()))
        for _ in range(KEYFRAMES + 1):
            next(keyframes)
        seconds = time.monotonic() - started
        per_keyframe = len(ticks) // KEYFRAMES  # PNDM takes one step more than it is asked for
        pairs = enumerate(itertools.pairwise(ticks), start=1)
        step_seconds = [end - begin for i, (begin, end) in pairs if i % per_keyframe]  # not across keyframes
        bare_seconds = _bare_runs(opened.inpainting, len(step_seconds))
    calls = 2  # of the UNet in a guided step
    return {
        "keyframes": KEYFRAMES, "steps": STEPS, "guidance": GUIDANCE, "wall_seconds": round(seconds, 1),
        "unet_call_seconds": spread([step / calls for step in step_seconds]),
        "bare_unet_call_seconds": spread(bare_seconds),
        "overhead": round(float(np.median(step_seconds)) / calls / float(np.median(bare_seconds)) - 1, 4),
    }  # fmt: skip


def _bare_runs(inpainting: Inpainting, count: int) -> list[float]:
    """Seconds of runs of the UNet's engine alone."""
    feeds = random_feeds(inpainting, "unet")
    engine = inpainting.engine("unet")
    seconds = []
    for _ in range(count):
        started = time.monotonic()
        engine.run(feeds)
        seconds.append(time.monotonic() - started)
    return seconds


def benchmark_app(bundle: Path) -> dict[str, Any]:
    """OpenVINO's own benchmark tool on the UNet of a bundle."""
    command = [str(Path(sys.executable).parent / "benchmark_app"), "-m", str(bundle / "unet" / "openvino_model.xml")]
    done = subprocess.run([*command, "-d", "CPU", "-hint", "latency", "-niter", "6"], capture_output=True, text=True)
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if found is None:
        raise SystemExit(f"benchmark_app says no median:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {"command": "benchmark_app -m unet -d CPU -hint latency -niter 6", "median_seconds": float(found[1]) / 1e3}


def spread(values: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    return {"median": round(float(middle), 4), "p10": round(float(low), 4), "p90": round(float(high), 4)}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--optimum", type=Path, help="optimum-cli in the environment of benchmarks/rivals/optimum.txt")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="builds beside optimum")
    parser.add_argument("--parts", nargs="+", default=["onnx", "build", "optimum", "zoom"])
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()

    def save(**figures: Any) -> None:
        result = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps({**result, **figures}, indent=1) + "\n")
        print(json.dumps(figures, indent=1), flush=True)

    machine = describe_machine()
    save(
        command="python -m outzoom.benchmarks.full_size CHECKPOINT --work DIR --optimum DIR/bin/optimum-cli",
        date=time.strftime("%Y-%m-%d"), checkpoint=args.checkpoint.name, machine=machine.cpu_model,
        cores=psutil.cpu_count(), load_before=psutil.getloadavg()[0], packages=machine.packages,
    )  # fmt: skip
    args.work.mkdir(parents=True, exist_ok=True)
    bundles = args.work / "bundles"
    if "onnx" in args.parts:
        save(onnx_export=onnx_export(args.checkpoint, args.work, args.jobs))
    if "build" in args.parts:
        shutil.rmtree(bundles, ignore_errors=True)
        save(**{f"build_{target}": build(args.checkpoint, args.work, target, args.jobs) for target in TARGETS[:1]})
    if "optimum" in args.parts and args.optimum:
        save(beside_optimum=beside_optimum(args.checkpoint, args.work, args.optimum, args.jobs, args.rounds))
    if "zoom" in args.parts:
        save(**{f"build_{target}": build(args.checkpoint, args.work, target, args.jobs) for target in TARGETS[1:]})
        save(**{f"zoom_{target}": zoom(bundles / f"{target}-{RECIPE}") for target in TARGETS})
        save(benchmark_app=benchmark_app(bundles / f"{TARGETS[0]}-{RECIPE}"))


if __name__ == "__main__":
    main()
