"""What a build will take, before anything of it runs: `outzoom export-all --dry-run`.

Bytes on disk follow from the headers of the checkpoint's files. Seconds and memory come from rates that were fitted to
measured builds (see RATES). For the stages of those at full size, seconds are off by a factor of at most 1.7 (for half
of them at most 1.22), memory by at most 1.2; for the two whole builds, seconds are 4% and 6% too few. A busy machine
takes several times as long; for other models, sizes and machines they are an idea of what is to come, no promise.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from ..compress.recipe import KMeans, Recipe, Rule
from ..runtime.bundle import COMPONENTS
from ..runtime.errors import UserError
from ..runtime.shapes import Size
from . import calibration, compiling, reading, sensitivity, stages, writing
from .checkpoint import PART_OF, Checkpoint
from .layout import is_of_component
from .plan import BundlePlan, Plan
from .segments import SEGMENT_BYTES
from .shapes import Shapes
from .stages import Stage

SAFETY = 1.05
BUSY_JOBS = 1.75  # of two, as measured: stages wait for others; and two cores are not faster with more
# Multiply-adds of a run for each parameter and each pixel of the picture, as PyTorch counts them for Stable Diffusion 2
# at 512x512, and the bytes that the module's activations take for each pixel, fitted as the rates below are. The text
# encoder has no pixels: what it takes is counted by its parameters.
MULTIPLY_ADDS = {"text_encoder": 0.0, "unet": 0.0018, "vae_encoder": 0.062, "vae_decoder": 0.097}
ACTIVATION_BYTES = {"text_encoder": 0, "unet": 1900, "vae_encoder": 2450, "vae_decoder": 4600}


@dataclass(frozen=True)
class Rates:
    """What a kind of stage takes.

    Seconds: at its start, for each tensor, for 1e9 parameters, and for 1e12 multiply-adds. Memory: MiB at its start,
    and multiples of the largest tensor as float32, of the weights as they are stored, of those of a segment of the
    graph, and of the module's activations.
    """

    start_seconds: float
    tensor_seconds: float = 0.0
    parameter_seconds: float = 0.0
    multiply_add_seconds: float = 0.0
    start_mib: int = 0
    largest: float = 0.0
    stored: float = 0.0
    segment: float = 0.0
    activations: float = 0.0


# Fitted to the stages in benchmarks/results/full-size.json (Stable Diffusion 2 at 512x512 in fp16, for both targets, 2
# jobs; AMD EPYC, 2 cores) and in a build.log of the demo model there (not kept), whose stages are mostly their start.
RATES = {
    reading.trace_component: Rates(0.5, tensor_seconds=0.022, start_mib=450),
    reading.run_module: Rates(
        0.15, parameter_seconds=11, multiply_add_seconds=22,
        start_mib=380, largest=1.6, activations=1,
    ),
    sensitivity.try_choices: Rates(0.0, start_mib=400, largest=10),  # full-size-compression.json
    writing.write_onnx: Rates(0.0, parameter_seconds=12, start_mib=350, largest=1.5),
}  # fmt: skip
ENGINE_RATES = {  # of compiling.compile_engine, by target
    "openvino-cpu": Rates(
        0.1, tensor_seconds=0.0032, parameter_seconds=14.5, multiply_add_seconds=8,
        start_mib=430, stored=1, segment=0.3, activations=0.4,
    ),
    "onnxruntime": Rates(
        0.1, parameter_seconds=13, multiply_add_seconds=21,
        start_mib=400, stored=1, segment=1, activations=1.45,
    ),
}  # fmt: skip

# What runs engines on recorded inputs, a segment after another: counted at the rates of what checks engines.
RUN_TENSOR_SECONDS = 0.0003  # and for each tensor of each run, whatever its size: most of what the demo model takes
RUNS = (calibration.record_trajectories, calibration.measure_activations, sensitivity.measure_sensitivity)


@dataclass(frozen=True)
class Estimate:
    """What is still to be done, and about what it takes."""

    stages: tuple[str, ...]
    seconds: float
    disk_bytes: int  # that have to be free
    kept_bytes: int  # of the finished bundles
    peak_memory_bytes: int  # of the largest processes that may run at a time


@dataclass(frozen=True)
class Weights:
    """What of a component's weights time and memory depend on; `largest` is the tensor with the most parameters.

    `layers`: the tensors with more than one side, which are those that recipes compress.
    """

    tensors: int
    layers: int
    parameters: int
    largest: int


@dataclass(frozen=True)
class Cost:
    """About what a stage takes, with another one beside it."""

    seconds: float
    peak_memory_bytes: int


def estimate(plan: Plan) -> Estimate:
    """The estimate of a plan; what is up to date costs nothing."""
    bundles = [bundle for bundle in plan.bundles if bundle.up_to_date() is None]
    engines = [engine for bundle in bundles for engine in bundle.engines.values()]
    missing = {stage.key: stage for engine in engines for stage in stages.missing(engine, plan.cache_folder)}
    weights = component_weights(plan.checkpoint)
    bundle_bytes = [_bundle_bytes(bundle, weights) for bundle in bundles]
    costs = [stage_cost(stage, weights, plan.shapes) for stage in missing.values()]
    memory = sorted((cost.peak_memory_bytes for cost in costs), reverse=True)
    return Estimate(
        stages=tuple(stage.name for stage in missing.values()),
        seconds=round(sum(cost.seconds for cost in costs) / min(plan.jobs, BUSY_JOBS), 1),
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


def component_weights(checkpoint: Checkpoint) -> dict[str, Weights]:
    """What the headers of a checkpoint's files say of each component."""
    found = {}
    for component in COMPONENTS:
        tensors = checkpoint.weights(PART_OF[component]).items()
        shapes = [tensor.shape for name, tensor in tensors if is_of_component(name, component)]
        own = [math.prod(shape) for shape in shapes]
        found[component] = Weights(len(own), sum(len(shape) > 1 for shape in shapes), sum(own), max(own, default=0))
    return found


def stage_cost(stage: Stage, weights: Mapping[str, Weights], shapes: Shapes) -> Cost:
    """About what a stage takes that makes something of components with these weights."""
    if stage.work is sensitivity.choose_mixed:
        return Cost(0.1, 0)
    if stage.work in RUNS:
        return _calibration_cost(stage, weights, shapes.sizes[0])
    component = str(stage.arguments["component"])
    rates, own = _rates(stage), weights[component]
    probed = stage.work in (reading.run_module, compiling.compile_engine) and component != "text_encoder"
    sizes = shapes.sizes if probed else shapes.sizes[:1]
    pixels = [(shapes.batch if component == "unet" else 1) * width * height for width, height in sizes]
    once = rates.start_seconds + rates.tensor_seconds * own.tensors + rates.parameter_seconds * own.parameters / 1e9
    if stage.work in (writing.write_onnx, sensitivity.try_choices):
        once += _compressing_seconds(stage, own)
    computing = rates.multiply_add_seconds * MULTIPLY_ADDS[component] * own.parameters * sum(pixels) / 1e12
    stored = _stored_bytes(own, stage.arguments["recipe"]) if rates.stored else 0
    memory = (
        rates.start_mib * 2**20
        + rates.largest * 4 * own.largest
        + rates.stored * stored
        + rates.segment * min(stored, SEGMENT_BYTES)
        + rates.activations * ACTIVATION_BYTES[component] * max(pixels)
    )
    return Cost(len(sizes) * once + computing, round(memory))


def _compressing_seconds(stage: Stage, own: Weights) -> float:
    """About what a stage takes to compress a component: by all choices of a mixed recipe, or by the slowest rule."""
    recipe = stage.arguments["recipe"]
    choices = [_rule_seconds(rule, own) for rule in (recipe.mixed.choices if recipe.mixed else ())]
    if stage.work is sensitivity.try_choices:
        return sum(choices)
    structured = 110e-9 * own.parameters if recipe.structured and stage.work is writing.write_onnx else 0.0
    return max((*(_rule_seconds(rule, own) for rule in recipe.rules), *choices, structured))


def _rule_seconds(rule: Rule, own: Weights) -> float:
    """For a component; fitted to stages of full-size SD2 and of the demo model, part of them beside other work."""
    if rule.needs_covariance:
        return 150e-9 * own.parameters + 0.1 * own.layers
    if isinstance(rule.store, KMeans):
        return 140e-9 * own.parameters + 0.005 * rule.store.groups * own.layers
    return (100e-9 if rule.store or rule.prune or rule.sparsify else 30e-9) * own.parameters


def _rates(stage: Stage) -> Rates:
    """For a target that was not measured those of ONNX Runtime, which takes the most."""
    if stage.work is compiling.compile_engine:
        return ENGINE_RATES.get(stage.arguments["target"], ENGINE_RATES["onnxruntime"])
    return RATES[stage.work]


def _calibration_cost(stage: Stage, weights: Mapping[str, Weights], size: Size) -> Cost:
    """Of a stage that zooms, or that runs a component on what zooms fed to it: its runs, a segment after another."""
    recipe, rates, pixels = stage.arguments["recipe"], ENGINE_RATES["onnxruntime"], math.prod(size)
    component = str(stage.arguments.get("component", ""))
    keyframes = len(recipe.calibration.prompts) * recipe.calibration.keyframes
    runs: dict[str, float] = dict.fromkeys(COMPONENTS, keyframes)
    runs["unet"] *= recipe.calibration.steps * (2 if recipe.calibration.guidance > 1 else 1)
    probing = 0.0
    if stage.work is sensitivity.measure_sensitivity:  # each layer is compressed, and what follows is run
        runs[component] = recipe.mixed.samples * weights[component].layers / 2
        probing = _compressing_seconds(stage, weights[component])
    components = [component] if component else COMPONENTS
    multiply_adds = pixels * sum(runs[name] * MULTIPLY_ADDS[name] * weights[name].parameters for name in components)
    handling = RUN_TENSOR_SECONDS * sum(runs[name] * weights[name].tensors for name in components)
    memory = (
        rates.start_mib * 2**20
        + min(max(4 * weights[name].parameters for name in components), SEGMENT_BYTES)
        + rates.activations * pixels * max(ACTIVATION_BYTES[name] for name in components)
    )
    return Cost(probing + handling + rates.multiply_add_seconds * multiply_adds / 1e12, round(memory))


def _bundle_bytes(bundle: BundlePlan, weights: Mapping[str, Weights]) -> int:
    return sum(_stored_bytes(own, bundle.recipe) for own in weights.values())


def _stored_bytes(own: Weights, recipe: Recipe) -> int:
    return own.parameters * (2 if recipe.weights == "float16" else 4)
