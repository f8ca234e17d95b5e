"""Measure one bundle in this very process: `python -m outzoom.benchmarks.measure BUNDLE`, JSON lines on stdout.

Only what a device needs is imported before the bundle is open, so that time and memory are those of a device.
`process.measure_bundle` starts it. Nothing here may be imported by the package's `__init__`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import OutzoomError, PromptTruncatedWarning, Zoom, load_image, open_bundle
from ..runtime.backends import Engine
from ..runtime.bundle import COMPONENTS
from ..runtime.errors import printable
from ..runtime.inpainting import Inpainting
from ..runtime.machine import peak_rss_bytes
from ..runtime.schedulers import default_scheduler
from ..runtime.sensors import temperature_celsius
from ..runtime.shapes import dimensions, resolve
from .memory_trace import MemoryTrace
from .process import Done, Failed, Message, Progress
from .results import BundleResult, ComponentResult, Latency, MemoryResult, OpenResult, ZoomResult
from .settings import MIN_RUNS, BenchSettings, from_json, to_json
from .zoom_energy import ZoomMeter, zoom_meter

Report = Callable[[str], None]


def measure(
    bundle: Path, settings: BenchSettings, spawned_at: float, work: Path | None, report: Report
) -> BundleResult:
    """Open the bundle, run each engine alone, then zoom; the pictures go into `work`, if given.

    `spawned_at` is `time.monotonic()` at the start of the process.
    """
    rss_after_import_bytes = rss_bytes()
    cpu = CpuShare()
    with MemoryTrace(spawned_at) as trace, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptTruncatedWarning)
        heard = trace.hearing(report)
        heard("open")
        zoom, opened, load_ms = _open(bundle, spawned_at)
        with zoom:
            rss_after_open_bytes = rss_bytes()
            components = _measure_components(zoom, settings, load_ms, heard)
            with zoom_meter(zoom.bundle.manifest.target, settings) as meter:
                zoomed = _measure_zoom(zoom, settings, opened, work, heard, meter)
    manifest = zoom.bundle.manifest
    energy = meter.result()
    result = BundleResult(
        name=printable(bundle.name),
        target=manifest.target,
        recipe=manifest.recipe.name,
        weights=manifest.recipe.weights,
        compute=manifest.recipe.compute,
        source=manifest.source.name,
        source_sha256=manifest.source.sha256,
        width=zoom.size[0],
        height=zoom.size[1],
        size_bytes=zoom.bundle.size_bytes,
        tools=manifest.tools,
        open=opened,
        components=components,
        zoom=zoomed,
        memory=MemoryResult(
            rss_after_import_bytes, rss_after_open_bytes, peak_rss_bytes(), trace.samples, trace.stages
        ),
        other_cpu_fraction=cpu.of_others(),
        warnings=(
            *(str(w.message) for w in caught if issubclass(w.category, PromptTruncatedWarning)),
            *([meter.warning] if meter.warning else []),
        ),
        energy=energy,
        temperature_celsius=temperature_celsius(),
    )
    report("what the engines compute in")
    return with_executed(result, zoom.inpainting)


def _open(bundle: Path, spawned_at: float) -> tuple[Zoom, OpenResult, dict[str, float]]:
    """The opened bundle with all engines loaded, and what that took."""
    start = time.monotonic()
    zoom = open_bundle(bundle)
    checked = time.monotonic()
    load_ms = {name: _timed_ms(partial(zoom.inpainting.engine, name)) for name in zoom.bundle.manifest.components}
    end = time.monotonic()
    return zoom, OpenResult(_ms(end - spawned_at), _ms(end - start), _ms(checked - start)), load_ms


def _measure_components(
    zoom: Zoom, settings: BenchSettings, load_ms: dict[str, float], report: Report
) -> dict[str, ComponentResult]:
    results = {}
    for name, component in zoom.bundle.manifest.components.items():
        if name in COMPONENTS:  # a hoisted UNet's parts are quick, and not counted by `BenchSettings.stage_count`
            report(f"{name}, {settings.runs} runs")
        first_ms, samples_ms = run_alone(zoom.inpainting.engine(name), random_feeds(zoom.inpainting, name), settings)
        results[name] = ComponentResult(
            parameters=component.parameters,
            size_bytes=zoom.bundle.component_size_bytes(name),
            parity_psnr_db=component.parity_psnr_db,
            load_ms=load_ms[name],
            first_run_ms=first_ms,
            latency=Latency.of(samples_ms),
        )
    return results


def with_executed(result: BundleResult, inpainting: Inpainting) -> BundleResult:
    """The result with what each engine computes in, which is loaded once more for that."""
    try:
        from .executed import executed

        components = {
            name: msgspec.structs.replace(one, executed=executed(inpainting, name, random_feeds(inpainting, name)))
            for name, one in result.components.items()
        }
    except ImportError:  # graphs are read with packages that a device need not have
        return result
    return msgspec.structs.replace(result, components=components)


def random_feeds(inpainting: Inpainting, component: str) -> dict[str, NDArray[Any]]:
    """Inputs of a component: token 0, and noise (of normal numbers: the others are slow on some CPUs)."""
    rng = np.random.default_rng(0)
    manifest = inpainting.bundle.manifest
    sides = dimensions(inpainting.size, manifest.vae_scale_factor)
    feeds = {}
    for spec in manifest.components[component].inputs:
        shape = resolve(spec.shape, sides)
        integers = np.issubdtype(np.dtype(spec.dtype), np.integer)
        feeds[spec.name] = np.zeros(shape) if integers else rng.standard_normal(shape, np.float32)
        feeds[spec.name] = feeds[spec.name].astype(spec.dtype)
    return feeds


def run_alone(engine: Engine, feeds: dict[str, NDArray[Any]], settings: BenchSettings) -> tuple[float, list[float]]:
    """Milliseconds of the first run, and of the runs after the warm-ups."""
    first_ms = _timed_ms(lambda: engine.run(feeds))
    for _ in range(settings.warm_ups):
        engine.run(feeds)
    samples_ms: list[float] = []
    deadline = time.monotonic() + settings.budget_seconds
    while len(samples_ms) < settings.runs:
        if len(samples_ms) >= MIN_RUNS and time.monotonic() > deadline:
            break
        samples_ms.append(_timed_ms(lambda: engine.run(feeds)))
    return first_ms, samples_ms


def _measure_zoom(
    zoom: Zoom, settings: BenchSettings, opened: OpenResult, work: Path | None, report: Report, meter: ZoomMeter
) -> ZoomResult:
    """Time every frame of the zoom; one that paints a keyframe is told by the steps taken for it."""
    motion = settings.motion
    steps_taken = 0

    def on_step() -> None:
        nonlocal steps_taken
        steps_taken += 1

    picture = load_image(settings.picture, zoom.size)
    painting_ms: list[float] = []
    between_ms: list[float] = []
    shown: dict[int, NDArray[np.uint8]] = {}
    wanted = {*settings.keyframe_indices, *settings.strip_indices}
    frames = zoom.frames(picture, settings.prompt, motion, settings.painting, on_step)
    for index in range(motion.frame_count):
        if index % motion.keyframe_every == 1:
            report(f"keyframe {len(painting_ms) + 1} of {motion.painted_count}")
        steps_before = steps_taken
        meter.frame_begins()
        start = time.monotonic()
        frame = next(frames)
        elapsed_ms = _ms(time.monotonic() - start)
        meter.frame_ends(is_painted=steps_taken > steps_before)
        (painting_ms if steps_taken > steps_before else between_ms).append(elapsed_ms)
        if index in wanted:
            shown[index] = frame
        if work is not None:
            with (work / "film.raw").open("ab") as film:  # not kept: it would count as the engines' memory
                film.write(frame.tobytes())
    if work is not None:
        np.save(work / "keyframes.npy", np.stack([shown[i] for i in settings.keyframe_indices]))
        np.save(work / "strip.npy", np.stack([shown[i] for i in settings.strip_indices]))
    between = Latency.of(between_ms)
    seconds = (sum(painting_ms) + sum(between_ms)) / 1e3
    return ZoomResult(
        scheduler=default_scheduler(zoom.bundle.manifest.scheduler),
        keyframe=Latency.of([ms - between.median_ms for ms in painting_ms]),
        between_frame=between,
        frame_count=motion.frame_count,
        seconds=round(seconds, 4),
        between_frames_per_second=round(1e3 / between.median_ms, 3),
        frames_per_second=round(motion.frame_count / seconds, 3),
        frames_per_second_with_open=round(motion.frame_count / (seconds + opened.from_process_start_ms / 1e3), 3),
    )


def rss_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


class CpuShare:
    """How much of the machine's CPU time other processes take, from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def of_others(self) -> float:
        """Their fraction of all cores' time, 0 to 1."""
        import psutil

        own, busy, wall = (end - start for end, start in zip(self._now(), self._start, strict=True))
        return round(min(max((busy - own) / (wall * (psutil.cpu_count() or 1)), 0.0), 1.0), 3)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        import psutil

        times = psutil.cpu_times()
        return time.process_time(), sum(times) - times.idle - getattr(times, "iowait", 0.0), time.monotonic()


def _timed_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return _ms(time.perf_counter() - start)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m outzoom.benchmarks.measure", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--settings", default="{}", help="BenchSettings as JSON")
    parser.add_argument("--work", type=Path, help="where keyframes.npy and strip.npy go; without it, nowhere")
    parser.add_argument("--spawned-at", type=float, default=time.monotonic(), help="time.monotonic() at the start")
    return parser.parse_args()


def main() -> int:
    """Measure, and say so on standard output, which is kept from the libraries that print there."""
    arguments = _arguments()
    stdout = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: Message) -> None:
        stdout.write(to_json(message) + b"\n")

    try:
        settings = from_json(arguments.settings, BenchSettings)
        result = measure(
            arguments.bundle, settings, arguments.spawned_at, arguments.work, lambda text: send(Progress(text))
        )
    except OutzoomError as error:
        send(Failed(str(error), error.hint, error.exit_code))
        return error.exit_code
    send(Done(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
