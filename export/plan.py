"""What to build: the bundles of a plan, and the stages that make each, keyed by all that goes into them.

For each component:  trace -> write ONNX as the recipe says -> compile for the target and check
                     run the checkpoint's module ----------------------------------'
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from ..compress.recipe import Int4, Recipe, Rule
from ..runtime.backends import backend_for, maker_version
from ..runtime.bundle import COMPONENTS, MANIFEST_NAME, SCHEMA_VERSION, Bundle, open_manifest
from ..runtime.errors import BundleError, MissingPackageError, UserError
from ..runtime.files import check_replaceable, sha256_of
from ..runtime.images import load_image
from ..runtime.schedulers import default_scheduler, make_scheduler
from ..runtime.shapes import dimensions
from ..runtime.tokenizer import ClipTokenizer
from . import calibration, compiling, reading, sensitivity, writing
from .checkpoint import PART_OF, Checkpoint
from .hashes import HashMemory, code_sha256
from .layout import TOKENIZER_FILES
from .recipes import calibration_pictures, check_patterns, read_recipe
from .shapes import Shapes, exported_shapes, probe_shapes
from .stages import KEY_DIGITS, Stage
from .targets import FORMS, adapted

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy")
CACHE_NAME = ".cache"
MAX_UNET_SEGMENTS = 64
EXACT = ("onnxruntime", read_recipe("fp32"))  # the target and recipe that activations are measured with
GRAPH_KEYS = ("structured", "rules", "mixed", "activations", "pointwise_as_products")  # what measurements depend on


@dataclass(frozen=True)
class Plan:
    """What to build, where, and with how many processes at a time."""

    checkpoint: Checkpoint
    targets: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    shapes: Shapes
    out: Path
    jobs: int = 1
    cache: Path | None = None  # where the results of stages are; by default in `out`
    hoist: bool = False  # the UNet in three parts: see hoist.py
    shallow_skips: int = 0  # how many skip connections the shallow UNet has, if there is one: see shallow.py
    unet_segments: int = 1  # into about how many engines, which run in turn, the UNet is cut
    interop: bool = False  # with the files by which optimum's pipelines open it: see interop.py

    def __post_init__(self) -> None:
        """Refuse now what would fail after hours of work, or on the device."""
        _check_installed()
        for target in self.targets:
            maker_version(target)
        for kind, names in (("target", self.targets), ("recipe", tuple(recipe.name for recipe in self.recipes))):
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"the {kind} '{twice[0]}' is asked for twice", hint="each makes one bundle of its name")
        if self.jobs < 1:
            raise UserError(f"--jobs must be at least 1, got {self.jobs}", hint="one for each core is usual")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"cannot write {self.out}: it is not a directory", hint="name another --out")
        for target in self.targets:
            for recipe in self.recipes:
                check_replaceable(self.out / f"{target}-{recipe.name}", MANIFEST_NAME)
        if self.interop and (self.hoist or self.shapes.batch == 1):
            raise UserError(
                "optimum's pipelines take the UNet whole, and do guidance in one call of it",
                hint="with --interop, give --batch 2 and leave out --hoist",
            )
        if self.interop and "onnxruntime-mobile" in self.targets:
            raise UserError(
                "optimum's pipelines open no .ort files", hint="with --interop, build for onnxruntime or openvino-cpu"
            )
        if self.interop and (self.shallow_skips or self.unet_segments > 1):
            raise UserError(
                "optimum's pipelines know of no shallow UNet and of none in segments",
                hint="with --interop, leave out --shallow and --segments",
            )
        if not 1 <= self.unet_segments <= MAX_UNET_SEGMENTS:
            raise UserError(
                f"--segments must be 1 to {MAX_UNET_SEGMENTS}, got {self.unet_segments}",
                hint="4 make engines of a quarter of the UNet each",
            )
        if self.unet_segments > 1 and self.shapes.open:
            raise UserError(
                "a UNet in segments has one size and takes one picture at a time",
                hint="with --segments, give one --size and no --batch",
            )
        if self.shapes.open and (fixed := [target for target in self.targets if FORMS[target].fixed_sides]):
            raise UserError(
                f"'{fixed[0]}' has engines of one size that take one picture at a time",
                hint="give one --size and no --batch",
            )
        joins = skip_connections(self.checkpoint)
        if not 0 <= self.shallow_skips < joins:
            raise UserError(
                f"the UNet has {joins} skip connections; a shallow one can't have {self.shallow_skips} of them",
                hint=f"give --shallow 1 to {joins - 1}; fewer make a quicker, less exact one",
            )
        if (self.hoist or self.interop) and self.checkpoint.config("unet").get("time_cond_proj_dim"):
            raise UserError(
                f"the UNet of '{self.checkpoint.path}' takes the strength of guidance as an input",
                hint="leave out --hoist and --interop, which are for UNets that do not",
            )
        if self.hoist and self.shapes.batch > 1:
            raise UserError(
                "a hoisted UNet takes one picture at a time, and batch 2 is asked for", hint="leave one out"
            )
        self.shapes.check(self.checkpoint)
        for recipe in self.recipes:
            check_patterns(recipe, self.checkpoint)
            for target in self.targets:
                adapted(recipe, target)
            if self.hoist and (groups := recipe.timestep_groups("unet")) > 1:
                raise UserError(
                    f"the recipe '{recipe.name}' has ranges for {groups} groups of timesteps, "
                    "and --hoist takes the timestep out of the UNet",
                    hint="leave one out",
                )
            if self.hoist and recipe.rounds_products("unet"):
                raise UserError(
                    f"the recipe '{recipe.name}' rounds attention's products, which a hoisted UNet is cut through",
                    hint="leave out --hoist, or the recipe's products = true or everywhere = true",
                )
        _check_tokenizer(self.checkpoint)
        scheduler = scheduler_config(self.checkpoint)
        make_scheduler(default_scheduler(scheduler), scheduler, steps=10)
        for recipe in self.recipes:
            if recipe.mixed or any(recipe.needs_calibration(component) for component in COMPONENTS):
                make_scheduler(default_scheduler(scheduler), scheduler, recipe.calibration.steps)
                _check_calibrates(recipe)

    @property
    def cache_folder(self) -> Path:
        """Where the results of stages are."""
        return self.cache or self.out / CACHE_NAME

    @cached_property
    def source_sha256(self) -> str:
        """The hash of the checkpoint; that of a file which did not change since the last build is remembered."""
        memory = HashMemory(self.cache_folder / "hashes.json")
        return self.checkpoint.digest(memory.sha256_of)

    @cached_property
    def bundles(self) -> list[BundlePlan]:
        """The bundles to make, those of one recipe after another."""
        return [BundlePlan(self, target, adapted(recipe, target)) for recipe in self.recipes for target in self.targets]

    @property
    def stage_count(self) -> int:
        """Of how many stages and bundles `build` reports that they are done or skipped."""
        seen = {
            stage.key for bundle in self.bundles for engine in bundle.engines.values() for stage in all_stages(engine)
        }
        return len(seen) + len(self.bundles)


def all_stages(stage: Stage) -> Iterator[Stage]:
    """The stage, and all that it needs, however often."""
    yield stage
    for need in stage.needs:
        yield from all_stages(need)


@dataclass(frozen=True, eq=False)
class BundlePlan:
    """One bundle of a plan, and the stages that make its engines."""

    plan: Plan
    target: str
    recipe: Recipe

    @property
    def path(self) -> Path:
        """Where the bundle will be."""
        return self.plan.out / f"{self.target}-{self.recipe.name}"

    @cached_property
    def engines(self) -> dict[str, Stage]:
        """The last stage of each component."""
        return {component: self._engine(component) for component in COMPONENTS}

    @cached_property
    def key(self) -> str:
        """A hash of all that the bundle is made of: as long as it stays, the bundle is up to date."""
        checkpoint, shapes = self.plan.checkpoint, self.plan.shapes
        tokenizer = {name: sha256_of(file) for name, file in tokenizer_files(checkpoint).items()}
        parts: list[Any] = [[stage.key for stage in self.engines.values()], tokenizer, scheduler_config(checkpoint)]
        parts += [SCHEMA_VERSION, checkpoint.name, shapes.sizes, shapes.batch, checkpoint.config("vae")]
        parts += [self.plan.interop]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]

    def up_to_date(self) -> Bundle | None:
        """The bundle that is there, if it is what would be built."""
        try:
            bundle = open_manifest(self.path, verify=False)
        except BundleError:
            return None
        return bundle if bundle.manifest.build.key == self.key else None

    def _engine(self, component: str) -> Stage:
        """trace -> write_onnx -> compile_engine, with run_module beside them."""
        plan, recipe = self.plan, msgspec.to_builtins(self.recipe)
        checkpoint, shapes = plan.checkpoint, plan.shapes
        probes = probe_shapes(checkpoint, component, shapes)
        config = checkpoint.config(PART_OF[component])
        made_by, weights = _made_by(), {"weights": plan.source_sha256}
        changes = {key: recipe[key] for key in (*GRAPH_KEYS, "weights", "entropy_coding")}
        ours = {"checkpoint": checkpoint, "component": component}
        hoisted = plan.hoist and component == "unet"
        skips = plan.shallow_skips if component == "unet" else 0
        segments = plan.unet_segments if component == "unet" else 1

        traced = self._traced(component)
        module = Stage(
            f"{component}: run the checkpoint's module", reading.run_module,
            {"config": config, "inputs": probes, **weights, **made_by}, {**ours, "shapes": shapes},
        )  # fmt: skip
        integers = self.recipe.rounds_activations(component) or self.recipe.multiplies_dynamically(component)
        for_onnxruntime = integers and FORMS[self.target].integers_of_onnxruntime
        typed = FORMS[self.target].typed
        onnx = Stage(
            f"{component}: write ONNX, {self.recipe.name}", writing.write_onnx,
            {
                **changes, "hoisted": hoisted, "skips": skips, "segments": segments,
                "for ONNX Runtime": for_onnxruntime, "typed": typed and self.recipe.compute, **weights,
            },
            {
                **ours, "recipe": self.recipe, "hoisted": hoisted, "skips": skips, "segments": segments,
                "for_onnxruntime": for_onnxruntime, "typed": typed,
            },
            (traced, *self._measured(component, traced), *self.mixed),
        )  # fmt: skip
        return Stage(
            f"{component}: compile for {self.target}, {self.recipe.name}", compiling.compile_engine,
            {
                "target": self.target, "version": maker_version(self.target),
                "compute": self.recipe.compute, "least": self.recipe.min_psnr_db,
            },
            {"component": component, "target": self.target, "recipe": self.recipe, "sides": self._sides(len(probes))},
            (onnx, module),
        )  # fmt: skip

    def _traced(self, component: str) -> Stage:
        """The stage that makes a component's graph."""
        plan = self.plan
        config = plan.checkpoint.config(PART_OF[component])
        inputs = exported_shapes(plan.checkpoint, component, plan.shapes)
        return Stage(
            f"{component}: export the graph", reading.trace_component,
            {"config": config, "inputs": inputs, **_made_by()},
            {"checkpoint": plan.checkpoint, "component": component, "shapes": plan.shapes},
        )  # fmt: skip

    @cached_property
    def mixed(self) -> tuple[Stage, ...]:
        """The stage by which a mixed recipe chooses for all layers, after those that try its choices."""
        if self.recipe.mixed is None:
            return ()
        name, identity = self.recipe.name, {**self._of_graph, "weights": self.plan.source_sha256}
        ours = {"checkpoint": self.plan.checkpoint, "recipe": self.recipe}
        components = [(self._traced(component), {**ours, "component": component}) for component in COMPONENTS]
        tried = [
            Stage(f"{own['component']}: try choices, {name}", sensitivity.try_choices, identity, own, (traced,))
            for traced, own in components
        ]
        measured = [
            Stage(
                f"{own['component']}: measure the layers' sensitivity, {name}", sensitivity.measure_sensitivity,
                {}, {**own, "target": self.target}, (traced, self.zooms, *tried),
            )
            for traced, own in components
        ]  # fmt: skip
        budget: dict[str, Any] = {"bits": self.recipe.mixed.bits}
        if self.recipe.mixed.budget_mb is not None:
            budget = {"budget_mb": self.recipe.mixed.budget_mb, "target": self.target}
        return (
            Stage(
                f"choose for each layer, {name}", sensitivity.choose_mixed,
                budget, {"recipe": self.recipe, "target": self.target}, (*tried, *measured),
            ),
        )  # fmt: skip

    @property
    def _of_graph(self) -> dict[str, Any]:
        """What of the recipe a measurement on the graph depends on."""
        mixed = self.recipe.mixed and msgspec.structs.replace(self.recipe.mixed, bits=1, budget_mb=None)
        narrowed = tuple(msgspec.structs.replace(entry, fraction=0, correct=True) for entry in self.recipe.structured)
        rounding = self.recipe.activations and msgspec.structs.replace(self.recipe.activations, symmetric=False)
        rules = tuple(_with_usual_scales(rule) for rule in self.recipe.rules)
        recipe = msgspec.structs.replace(  # the same for every budget, and for all kinds of codes and scales
            self.recipe, mixed=mixed, structured=narrowed, activations=rounding, rules=rules
        )
        found: dict[str, Any] = msgspec.to_builtins({key: getattr(recipe, key) for key in GRAPH_KEYS})
        return found

    def _measured(self, component: str, traced: Stage) -> tuple[Stage, ...]:
        """What measures a component's activations, if the recipe asks for them, after the zooms for it.

        Where they are smoothed there are two stages, the latter of which, for the unsmoothed ones, comes first.
        """
        if not self.recipe.needs_calibration(component):
            return ()
        ours = {"checkpoint": self.plan.checkpoint, "component": component, "recipe": self.recipe}
        ours |= {"sides": self._sides(1)[0]}
        first = Stage(
            f"{component}: measure activations, {self.recipe.name}", calibration.measure_activations,
            self._of_graph, ours, (traced, self.zooms),
        )  # fmt: skip
        if not self.recipe.has_smoothed(component):
            return (first,)
        smoothed = Stage(
            f"{component}: measure smoothed activations, {self.recipe.name}", calibration.measure_activations,
            {"smooth": msgspec.to_builtins(self.recipe.smooth)}, ours, (traced, self.zooms, first),
        )  # fmt: skip
        return smoothed, first

    @cached_property
    def zooms(self) -> Stage:
        """The stage that zooms for calibration, on exact engines."""
        exact = BundlePlan(replace(self.plan, hoist=False, shallow_skips=0, unet_segments=1, interop=False), *EXACT)
        settings = msgspec.structs.replace(
            self.recipe.calibration, pictures=()
        )  # they are told apart by what they show
        tokenizer = {name: sha256_of(file) for name, file in tokenizer_files(self.plan.checkpoint).items()}
        pictures = [sha256_of(picture) for picture in calibration_pictures(self.recipe)]
        return Stage(
            "zoom for calibration", calibration.record_trajectories,
            {"calibration": msgspec.to_builtins(settings), "pictures": pictures, "tokenizer": tokenizer},
            {"bundle": exact, "recipe": self.recipe}, tuple(exact.engines.values()),
        )  # fmt: skip

    def _sides(self, count: int) -> list[dict[str, int]]:
        """The numbers of the open dimensions for the first `count` sizes: those that a component is probed at."""
        plan = self.plan
        sizes = plan.shapes.sizes[:count]
        return [dimensions(size, plan.checkpoint.vae_scale_factor, plan.shapes.batch) for size in sizes]


def _with_usual_scales(rule: Rule) -> Rule:
    """A rule whose blocks of four bits, if it has any, have the scales that are usual."""
    if not isinstance(rule.store, Int4):
        return rule
    return msgspec.structs.replace(rule, store=msgspec.structs.replace(rule.store, symmetric=True, positive=False))


def skip_connections(checkpoint: Checkpoint) -> int:
    """How often the UNet's way up is joined by its way down: once for each of its ResNet blocks."""
    config = checkpoint.config("unet")
    blocks = len(config.get("up_block_types", range(4)))  # diffusers' own defaults
    layers = config.get("layers_per_block", 2)
    return sum(count + 1 for count in (layers if isinstance(layers, list) else [layers] * blocks))


def _made_by() -> dict[str, str]:
    """What the result of every stage depends on: our code, and the packages behind it."""
    return {"code": code_sha256(), **{name: version(name) for name in TOOLS}}


def _check_calibrates(recipe: Recipe) -> None:
    """Refuse a recipe whose calibration can't run here."""
    try:
        backend_for(EXACT[0]).version()
    except MissingPackageError as error:
        message = f"the recipe '{recipe.name}' measures activations with ONNX Runtime, which is not installed"
        raise UserError(message, hint=error.hint) from error
    for picture in calibration_pictures(recipe):
        load_image(picture)


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    config = checkpoint.config("text_encoder")
    tokenizer = ClipTokenizer(checkpoint.tokenizer_folder, config["max_position_embeddings"])
    if tokenizer.vocabulary_size > config["vocab_size"]:
        raise UserError(
            f"the tokenizer of '{checkpoint.path}' has {tokenizer.vocabulary_size} tokens, "
            f"its text encoder knows {config['vocab_size']}",
            hint="take both from one checkpoint",
        )


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files of the checkpoint's tokenizer, by name."""
    files = {name: checkpoint.tokenizer_folder / name for name in TOKENIZER_FILES}
    return {name: file for name, file in files.items() if file.is_file()}


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The scheduler's configuration without infinite numbers, which JSON lacks.

    diffusers writes them for keys that mean nothing then.
    """
    config = checkpoint.config("scheduler")
    return {k: v for k, v in config.items() if not (isinstance(v, float) and not math.isfinite(v))}


def _check_installed() -> None:
    for package in TOOLS:
        try:
            version(package)
        except PackageNotFoundError:
            raise MissingPackageError(package, "export", "export-all") from None
