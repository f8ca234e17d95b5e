"""What a build will take, before anything of it runs: `outzoom export-all --dry-run`.

Bytes follow from the headers of the checkpoint's files. Memory and time are round numbers, chosen near those of one
full-size build on two cores of a server (benchmarks/results/full-size.json): an idea of what is to come, no promise.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.errors import UserError
from . import stages, work
from .checkpoint import PART_OF
from .plan import BundlePlan, Plan
from .segments import SEGMENT_BYTES
from .stages import Stage

BASE_BYTES = 450 * 2**20  # a process with PyTorch and the exporters loaded
LARGEST_LAYER_BYTES = 400 * 2**20  # as float32, in the few copies that converting it makes
ACTIVATIONS_PER_PIXEL = 4000  # bytes, of the VAE's widest layers
SAFETY = 1.05
# Seconds of a stage: fixed, by 1e9 parameters, and by 1e6 pixels (the VAE's and the UNet's work).
SECONDS = {
    work.trace_component: (7.0, 20.0, 0.0),
    work.run_module: (1.0, 10.0, 60.0),
    work.write_onnx: (0.5, 15.0, 0.0),
    work.compile_engine: (2.0, 30.0, 40.0),
}


@dataclass(frozen=True)
class Estimate:
    """What is still to be done, and about what it takes."""

    stages: tuple[str, ...]
    seconds: float
    disk_bytes: int  # that have to be free
    kept_bytes: int  # of the finished bundles
    peak_memory_bytes: int  # of the largest processes that may run at a time


def estimate(plan: Plan) -> Estimate:
    """The estimate of a plan; what is up to date costs nothing."""
    bundles = [bundle for bundle in plan.bundles if bundle.up_to_date() is None]
    engines = [engine for bundle in bundles for engine in bundle.engines.values()]
    missing = {stage.key: stage for engine in engines for stage in stages.missing(engine, plan.cache_folder)}
    sizes = {part: _parameters(plan, part) for part in sorted(set(PART_OF.values()))}
    bundle_bytes = [_bundle_bytes(bundle, sizes) for bundle in bundles]
    memory = sorted((_memory_bytes(stage, plan, sizes) for stage in missing.values()), reverse=True)
    busy = min(plan.jobs, 2)  # on two cores, more jobs than that are not faster
    return Estimate(
        stages=tuple(stage.name for stage in missing.values()),
        seconds=round(sum(_seconds(stage, plan, sizes) for stage in missing.values()) / busy, 1),
        disk_bytes=round((sum(bundle_bytes) + max(bundle_bytes, default=0)) * SAFETY),  # ONNX beside the engines
        kept_bytes=round(sum(bundle_bytes) * SAFETY),
        peak_memory_bytes=sum(memory[: plan.jobs]),
    )


def check_disk(plan: Plan, needed_bytes: int) -> None:
    """Raises UserError, before the work, when the disk has not that much room."""
    folder = next(folder for folder in (plan.out.resolve(), *plan.out.resolve().parents) if folder.exists())
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"the build needs about {needed_bytes / 1e9:.2f} GB on the disk of {folder}, "
            f"{free_bytes / 1e9:.2f} GB are free",
            hint="free some space, name another --out, or build fewer recipes at a time",
        )


def _parameters(plan: Plan, part: str) -> int:
    return sum(math.prod(tensor.shape) for tensor in plan.checkpoint.weights(part).values())


def _bundle_bytes(bundle: BundlePlan, sizes: Mapping[str, int]) -> int:
    return sum(sizes.values()) * (2 if bundle.recipe.weights == "float16" else 4)


def _memory_bytes(stage: Stage, plan: Plan, sizes: Mapping[str, int]) -> int:
    component = str(stage.arguments["component"])
    pixels = max(width * height for width, height in plan.shapes.sizes)
    activations = ACTIVATIONS_PER_PIXEL * pixels if component.startswith("vae") else 0
    if stage.work is work.compile_engine:  # the ONNX file is mapped, and a segment of it loaded
        stored = sizes[PART_OF[component]] * (2 if stage.arguments["recipe"].weights == "float16" else 4)
        return BASE_BYTES + stored + min(stored, 2 * SEGMENT_BYTES) + activations
    if stage.work is work.trace_component:
        return BASE_BYTES
    return BASE_BYTES + min(4 * sizes[PART_OF[component]], LARGEST_LAYER_BYTES) + activations


def _seconds(stage: Stage, plan: Plan, sizes: Mapping[str, int]) -> float:
    component = str(stage.arguments["component"])
    fixed, by_parameters, by_pixels = SECONDS[stage.work]
    pixels = 0 if component == "text_encoder" else sum(width * height for width, height in plan.shapes.sizes)
    return fixed + by_parameters * sizes[PART_OF[component]] / 1e9 + by_pixels * pixels / 1e6
