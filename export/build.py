"""`export-all`: from a checkpoint to one bundle for each target and recipe.

trace ONNX -> apply the recipe -> write ONNX -> compile for each target -> check parity -> write the bundle
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..compress.cast import cast_weights
from ..runtime.backends import backend_for
from ..runtime.bundle import (
    COMPONENTS,
    HOISTED_INPUTS,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    TOKENIZER_FOLDER,
    Bundle,
    Component,
    Manifest,
    RecipeInfo,
    Source,
    TensorSpec,
    describe_files,
    open_manifest,
    write_manifest,
)
from ..runtime.errors import BundleError, OutzoomError, UserError, printable
from ..runtime.files import atomic_directory, check_replaceable, scratch_directory
from ..runtime.schedulers import default_scheduler, make_scheduler
from ..runtime.tokenizer import ClipTokenizer
from .checkpoint import Checkpoint
from .hoist import hoist
from .parity import probe, reference_output, tensor_psnr_db
from .recipes import Recipe
from .trace import trace

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class Plan:
    """What to build."""

    checkpoint: Checkpoint
    targets: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    width: int
    height: int
    out: Path
    hoist: bool = False  # the UNet in three parts: see hoist.py

    def __post_init__(self) -> None:
        """Refuse now what would fail after hours of work, or on the device."""
        for target in self.targets:
            backend_for(target).version()
        for kind, names in (("target", self.targets), ("recipe", tuple(recipe.name for recipe in self.recipes))):
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"the {kind} '{twice[0]}' is asked for twice", hint="each makes one bundle of its name")
        for target in self.targets:
            for recipe in self.recipes:
                check_replaceable(self.out / f"{target}-{recipe.name}", MANIFEST_NAME)
        self.checkpoint.check_size(self.width, self.height)
        _check_tokenizer(self.checkpoint)
        scheduler = _scheduler_config(self.checkpoint)
        make_scheduler(default_scheduler(scheduler), scheduler, steps=10)

    @property
    def stage_count(self) -> int:
        """How many times `build` calls `on_stage`."""
        engines = len(COMPONENTS) + self.hoist * len(HOISTED_INPUTS)
        return len(COMPONENTS) + len(self.recipes) * (len(COMPONENTS) + len(self.targets) * (engines + 1))


@dataclass(frozen=True)
class Probe:
    """Inputs of a component and what its module makes of them."""

    feeds: dict[str, NDArray[Any]]
    output: NDArray[Any]


def build(plan: Plan, on_stage: Callable[[str], None]) -> Iterator[Bundle]:
    """Build every bundle of the plan, each complete and checked when it is yielded.

    `on_stage` is told what begins. Raises OutzoomError for a component below the recipe's `min_psnr_db`;
    whatever stops the build, no half-made bundle stays.
    """
    with scratch_directory(plan.out / "onnx") as scratch:
        probes = {}
        for component in COMPONENTS:
            on_stage(f"{component}: run the checkpoint's module")
            probes[component] = _probe(plan, component)
        for recipe in plan.recipes:
            models: dict[str, OnnxModel] = {}
            for component in COMPONENTS:
                on_stage(f"{component}: export to ONNX, {recipe.name}")
                models |= _write_onnx(plan, component, recipe, scratch / recipe.name)
            for target in plan.targets:
                yield _bundle(plan, target, recipe, models, probes, on_stage)
            shutil.rmtree(scratch / recipe.name)


def _probe(plan: Plan, component: str) -> Probe:
    feeds = probe(plan.checkpoint, component, plan.width, plan.height)
    try:
        return Probe(feeds, reference_output(plan.checkpoint, component, feeds))
    except MemoryError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        if "allocate memory" in str(error):  # PyTorch's word for it is a RuntimeError
            raise MemoryError from error
        raise UserError(  # what diffusers raises for a configuration and weights that do not fit
            f"{component} can't be made from '{plan.checkpoint.path}': {error}",
            hint="do its configuration and its weights belong together?",
        ) from error


@dataclass(frozen=True)
class OnnxModel:
    """A written ONNX model and what its manifest entry needs."""

    file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int


def _write_onnx(plan: Plan, component: str, recipe: Recipe, folder: Path) -> dict[str, OnnxModel]:
    """The component's model; of a hoisted UNet the parts before the step."""
    model = trace(plan.checkpoint, component, plan.width, plan.height)
    if not (plan.hoist and component == "unet"):
        return {component: _write_model(model, recipe, folder / component)}
    hoisted = hoist(model, HOISTED_INPUTS)
    parts = {**hoisted.parts, component: hoisted.step}
    return {name: _write_model(part, recipe, folder / name) for name, part in parts.items()}


def _write_model(model: ir.Model, recipe: Recipe, folder: Path) -> OnnxModel:
    weights = [value.const_value for value in model.graph.initializers.values()]
    parameters = sum(weight.size for weight in weights if weight is not None)
    if recipe.weights == "float16":
        model = cast_weights(model)
    folder.mkdir(parents=True)
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    inputs, outputs = (tuple(_spec(v) for v in values) for values in (model.graph.inputs, model.graph.outputs))
    return OnnxModel(folder / "model.onnx", inputs, outputs, parameters)


def _spec(value: ir.Value) -> TensorSpec:
    if value.name is None or value.shape is None or value.dtype is None:
        raise OutzoomError(f"the tensor {value} has no name, shape or type")
    return TensorSpec(value.name, value.shape.numpy(), np.dtype(value.dtype.numpy()).name)


def _bundle(
    plan: Plan,
    target: str,
    recipe: Recipe,
    models: dict[str, OnnxModel],
    probes: dict[str, Probe],
    on_stage: Callable[[str], None],
) -> Bundle:
    path = plan.out / f"{target}-{recipe.name}"
    with atomic_directory(path, marker=MANIFEST_NAME) as root:
        components: dict[str, Component] = {}
        made: dict[str, NDArray[Any]] = {}  # by the hoisted parts of the UNet, for its step
        for name, model in models.items():
            on_stage(f"{name}: compile for {target}, {recipe.name}")
            probe = probes["unet"] if name in HOISTED_INPUTS else probes[name]
            feeds = {spec.name: (probe.feeds | made)[spec.name] for spec in model.inputs}
            expected = None if name in HOISTED_INPUTS else probe.output
            components[name], outputs = _component(root, name, target, recipe, model, feeds, expected)
            made |= outputs if name in HOISTED_INPUTS else {}
        for name in components.keys() & HOISTED_INPUTS.keys():  # their parity is that of the whole
            parity_db = components["unet"].parity_psnr_db
            components[name] = msgspec.structs.replace(components[name], parity_psnr_db=parity_db)
        on_stage(f"write the bundle {path.name}")
        _copy_tokenizer(plan.checkpoint, root / TOKENIZER_FOLDER)
        write_manifest(root, _manifest(plan, target, recipe, components, root))
    return open_manifest(path, verify=False)


def _component(
    root: Path,
    name: str,
    target: str,
    recipe: Recipe,
    model: OnnxModel,
    feeds: dict[str, NDArray[Any]],
    expected: NDArray[Any] | None,
) -> tuple[Component, dict[str, NDArray[Any]]]:
    """The compiled component, its parity checked if it is known what to expect, and what it makes of the feeds."""
    backend = backend_for(target)
    engine = backend.compile(model.file, root / name)
    try:
        loaded = backend.load(engine, recipe.compute)
    except BundleError as error:
        raise OutzoomError(f"what was built can't be loaded: {error}", hint="please report this") from error
    try:
        outputs = loaded.run(feeds)
    finally:
        loaded.close()
    parity_db = math.inf if expected is None else tensor_psnr_db(expected, outputs[model.outputs[0].name])
    if not parity_db >= recipe.min_psnr_db:
        raise OutzoomError(
            f"{name} for {target} with the recipe '{recipe.name}' has a parity of {parity_db:.1f} dB PSNR; "
            f"the recipe asks for {recipe.min_psnr_db:.1f}",
            hint="use a gentler recipe, or lower min_psnr_db in a recipe file of your own",
        )
    component = Component(
        engine=engine.relative_to(root).as_posix(),
        inputs=model.inputs,
        outputs=model.outputs,
        parameters=model.parameters,
        parity_psnr_db=round(parity_db, 2) if math.isfinite(parity_db) else None,
    )
    return component, outputs


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    config = checkpoint.config("text_encoder")
    tokenizer = ClipTokenizer(checkpoint.path / "tokenizer", config["max_position_embeddings"])
    if tokenizer.vocabulary_size > config["vocab_size"]:
        raise UserError(
            f"the tokenizer of '{checkpoint.path}' has {tokenizer.vocabulary_size} tokens, "
            f"its text encoder knows {config['vocab_size']}",
            hint="take both from one checkpoint",
        )


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (file := checkpoint.path / "tokenizer" / name).is_file():
            shutil.copyfile(file, folder / name)


def _scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Without infinite numbers, which JSON lacks (diffusers writes them for keys that mean nothing then)."""
    config = checkpoint.config("scheduler")
    return {k: v for k, v in config.items() if not (isinstance(v, float) and not math.isfinite(v))}


def _manifest(plan: Plan, target: str, recipe: Recipe, components: dict[str, Component], root: Path) -> Manifest:
    checkpoint = plan.checkpoint
    return Manifest(
        schema_version=SCHEMA_VERSION,
        target=target,
        recipe=RecipeInfo(recipe.name, recipe.weights, recipe.compute),
        source=Source(printable(checkpoint.path.resolve().name), checkpoint.sha256),
        width=plan.width,
        height=plan.height,
        vae_scale_factor=checkpoint.vae_scale_factor,
        latent_scale=float(checkpoint.config("vae")["scaling_factor"]),
        max_tokens=checkpoint.config("text_encoder")["max_position_embeddings"],
        scheduler=_scheduler_config(checkpoint),
        components=components,
        files=describe_files(root),
        tools={
            **{name: version(name) for name in ("outzoom", *TOOLS)},
            target: backend_for(target).version(),
        },
    )
