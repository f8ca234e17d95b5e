"""What hoisting gains: `python -m outzoom.benchmarks.hoisting PLAIN HOISTED --out FILE` on two bundles of a checkpoint.

Time of a UNet step, the two engines in turn in one process; memory of painting a keyframe, each in fresh processes;
and the bytes that a step reads its weights from.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import Bundle, OutzoomError, Painting, UserError, Zoom, open_bundle, open_manifest
from ..runtime.backends import Engine
from ..runtime.bundle import HOISTED_INPUTS
from ..runtime.errors import printable
from ..runtime.inpainting import Inpainting
from ..runtime.machine import peak_rss_bytes
from .machine import describe_machine
from .measure import CpuShare, random_feeds
from .process import child_env
from .results import Latency, Machine
from .scripts import complain, write_json
from .settings import DEMO_PROMPT

Feeds = dict[str, NDArray[Any]]
SCHEMA_VERSION = 1


class EngineResult(msgspec.Struct, frozen=True):
    """An engine of the UNet: `size_bytes` is that of its files, nearly all of it weights."""

    parameters: int
    size_bytes: int
    latency: Latency


class SideResult(msgspec.Struct, frozen=True):
    """A bundle: its step, and the peak memory of fresh processes that each paint a keyframe."""

    name: str
    step: EngineResult
    peak_rss_bytes: tuple[int, ...]


class HoistingResult(msgspec.Struct, frozen=True):
    """The contents of the result file. Ratios are hoisted to plain: below 1, hoisting gains."""

    schema_version: int
    created_utc: str
    outzoom_version: str
    command: str
    machine: Machine
    target: str
    recipe: str
    source: str
    source_sha256: str
    width: int
    height: int
    tools: dict[str, str]
    painting_steps: int
    plain: SideResult
    hoisted: SideResult
    parts: dict[str, EngineResult]  # what runs once for each prompt, and once for each timestep
    step_ratio: float  # the median over the rounds, in each of which both run
    step_ratio_p10: float
    step_ratio_p90: float
    peak_rss_ratio: float  # of the medians
    step_size_ratio: float
    largest_difference_fraction: float  # of the two steps' outputs, to the largest output
    other_cpu_fraction: float  # of the machine's CPU time during the timing, taken by other processes


def measure_hoisting(
    plain: Path, hoisted: Path, rounds: int = 20, warm_ups: int = 2, processes: int = 3, painting_steps: int = 2
) -> HoistingResult:
    """Measure two bundles that differ in nothing else; raises UserError when they do differ."""
    machine = describe_machine()
    bundles = [open_manifest(plain), open_manifest(hoisted)]
    _check_pair(*bundles)
    peaks = [[_peak_of_fresh_process(b.path, painting_steps) for b in bundles] for _ in range(processes)]
    plain_peaks, hoisted_peaks = zip(*peaks, strict=True)
    cpu = CpuShare()
    feeds = _feeds(bundles[0])
    parts, made = _run_parts(bundles[1], feeds, rounds)
    step_feeds = (feeds, {"sample": feeds["sample"], **made})
    samples_ms, difference_fraction = _run_steps(bundles, step_feeds, rounds, warm_ups)
    other_cpu_fraction = cpu.of_others()
    sides = [
        SideResult(printable(bundle.path.name), _engine_result(bundle, "unet", samples), tuple(found))
        for bundle, samples, found in zip(bundles, samples_ms, (plain_peaks, hoisted_peaks), strict=True)
    ]
    p10, ratio, p90 = np.percentile(np.divide(samples_ms[1], samples_ms[0]), (10, 50, 90))
    manifest = bundles[0].manifest
    return HoistingResult(
        schema_version=SCHEMA_VERSION,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        outzoom_version=version("outzoom"),
        command=shlex.join(["python", "-m", "outzoom.benchmarks.hoisting", *sys.argv[1:]]),
        machine=machine,
        target=manifest.target,
        recipe=manifest.recipe.name,
        source=manifest.source.name,
        source_sha256=manifest.source.sha256,
        width=manifest.sizes[0][0],
        height=manifest.sizes[0][1],
        tools=manifest.tools,
        painting_steps=painting_steps,
        plain=sides[0],
        hoisted=sides[1],
        parts=parts,
        step_ratio=round(float(ratio), 4),
        step_ratio_p10=round(float(p10), 4),
        step_ratio_p90=round(float(p90), 4),
        peak_rss_ratio=round(float(np.median(hoisted_peaks) / np.median(plain_peaks)), 4),
        step_size_ratio=round(sides[1].step.size_bytes / sides[0].step.size_bytes, 4),
        largest_difference_fraction=difference_fraction,
        other_cpu_fraction=other_cpu_fraction,
    )


def _run_parts(hoisted: Bundle, feeds: Feeds, rounds: int) -> tuple[dict[str, EngineResult], Feeds]:
    """What the hoisted parts cost, each loaded alone, and what they make."""
    parts, made = {}, Feeds()
    for name, source in HOISTED_INPUTS.items():
        engine = _load(hoisted, name)
        given = {source: feeds[source]}
        made |= engine.run(given)
        parts[name] = _engine_result(hoisted, name, [_timed_ms(engine, given) for _ in range(rounds)])
        engine.close()
    return parts, made


def _run_steps(
    bundles: Sequence[Bundle], feeds: Sequence[Feeds], rounds: int, warm_ups: int
) -> tuple[list[list[float]], float]:
    """Milliseconds of each bundle's step in each round, and by how much their outputs differ at most."""
    engines = [_load(bundle, "unet") for bundle in bundles]
    plain, hoisted = (engine.run(given)["out_sample"] for engine, given in zip(engines, feeds, strict=True))
    samples_ms: list[list[float]] = [[], []]
    for number in range(warm_ups + rounds):
        for side in (0, 1) if number % 2 else (1, 0):  # neither is always the first
            elapsed_ms = _timed_ms(engines[side], feeds[side])
            if number >= warm_ups:
                samples_ms[side].append(elapsed_ms)
    return samples_ms, float(abs(plain - hoisted).max() / abs(plain).max())


def _check_pair(plain: Bundle, hoisted: Bundle) -> None:
    if plain.manifest.is_hoisted or not hoisted.manifest.is_hoisted:
        raise UserError(
            f"'{plain.path}' must be a plain bundle and '{hoisted.path}' a hoisted one",
            hint="export-all --hoist makes hoisted bundles",
        )
    for what in ("target", "recipe", "source", "sizes", "batch", "tools"):
        one, other = (getattr(bundle.manifest, what) for bundle in (plain, hoisted))
        if one != other:
            raise UserError(f"the bundles differ in {what}: {one} and {other}", hint="build both with one command")


def _load(bundle: Bundle, component: str) -> Engine:
    return Inpainting(bundle).engine(component)


def _feeds(plain: Bundle) -> Feeds:
    """Noise for the inputs of the whole UNet, in the middle of the schedule."""
    feeds = random_feeds(Inpainting(plain), "unet")
    feeds["timestep"][:] = 500
    return feeds


def _timed_ms(engine: Engine, feeds: Feeds) -> float:
    start = time.perf_counter()
    engine.run(feeds)
    return (time.perf_counter() - start) * 1e3


def _engine_result(bundle: Bundle, name: str, samples_ms: list[float]) -> EngineResult:
    component = bundle.manifest.components[name]
    return EngineResult(component.parameters, bundle.component_size_bytes(name), Latency.of(samples_ms))


def _peak_of_fresh_process(bundle: Path, steps: int) -> int:
    """The peak memory of a process that opens the bundle and paints a keyframe, loading engines as they are needed."""
    command = [sys.executable, "-m", "outzoom.benchmarks.hoisting", "--peak", str(bundle), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_env())
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OutzoomError(f"painting with '{bundle}' failed: {said[-1]}")
    return int(done.stdout.split()[-1])


def _paint_once(zoom: Zoom, steps: int) -> None:
    grey = np.full((*zoom.size[::-1], 3), 90, np.uint8)
    keyframes = zoom.keyframes(grey, DEMO_PROMPT, 0.5, Painting(steps=steps))
    for _ in range(2):
        next(keyframes)


def main() -> int:
    """Measure and write the result; with --peak, be one of the fresh processes."""
    parser = argparse.ArgumentParser(prog="python -m outzoom.benchmarks.hoisting", description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="PLAIN HOISTED")
    parser.add_argument("--out", type=Path, help="the result, a JSON file")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each step")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes of each bundle")
    parser.add_argument("--steps", type=int, default=2, help="UNet steps of the keyframe that they paint")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        with open_bundle(arguments.peak, verify=False) as zoom:
            _paint_once(zoom, arguments.steps)
        print(peak_rss_bytes())
        return 0
    if len(arguments.bundles) != 2 or arguments.out is None:
        parser.error("give a plain and a hoisted bundle, and --out")
    plain, hoisted = arguments.bundles
    try:
        result = measure_hoisting(plain, hoisted, arguments.rounds, 2, arguments.processes, arguments.steps)
    except OutzoomError as error:
        return complain(error)
    write_json(result, arguments.out)
    print(
        f"hoisted to plain: step {result.step_ratio:.3f} ({result.step_ratio_p10:.3f} to {result.step_ratio_p90:.3f}), "
        f"peak memory {result.peak_rss_ratio:.3f}, files of the step {result.step_size_ratio:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
