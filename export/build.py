"""`export-all`: from a checkpoint to one bundle for each target and recipe.

For each component:  trace -> write ONNX as the recipe says -> compile for the target and check -+-> write the bundle
                     run the checkpoint's module ------------------------------------------------'
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.backends import backend_for
from ..runtime.bundle import (
    COMPONENTS,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    TOKENIZER_FOLDER,
    BuildInfo,
    Bundle,
    Component,
    FileEntry,
    Manifest,
    RecipeInfo,
    Source,
    StageInfo,
    describe_files,
    open_manifest,
    write_manifest,
)
from ..runtime.errors import BundleError, MissingPackageError, UserError, printable
from ..runtime.files import atomic_directory, check_replaceable, link_or_copy, sha256_of
from ..runtime.schedulers import default_scheduler, make_scheduler
from ..runtime.shapes import dimensions
from ..runtime.tokenizer import ClipTokenizer
from . import stages, work
from .checkpoint import PART_OF, Checkpoint
from .hashes import HashMemory, code_sha256
from .interop import write_interop_files
from .layout import TOKENIZER_FILES
from .recipes import Recipe
from .shapes import Shapes, exported_shapes, probe_shapes
from .stages import Event, Record, Stage

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy")
CACHE_NAME = ".cache"
LOG_NAME = "build.log"


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
    interop: bool = False  # with the files by which optimum's pipelines open it: see interop.py

    def __post_init__(self) -> None:
        """Refuse now what would fail after hours of work, or on the device."""
        _check_installed()
        for target in self.targets:
            backend_for(target).version()
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
        if self.hoist and self.shapes.batch > 1:
            raise UserError(
                "a hoisted UNet takes one picture at a time, and batch 2 is asked for", hint="leave one out"
            )
        self.shapes.check(self.checkpoint)
        _check_tokenizer(self.checkpoint)
        scheduler = _scheduler_config(self.checkpoint)
        make_scheduler(default_scheduler(scheduler), scheduler, steps=10)

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
        return [BundlePlan(self, target, recipe) for recipe in self.recipes for target in self.targets]

    @property
    def stage_count(self) -> int:
        """Of how many stages and bundles `build` reports that they are done or skipped."""
        seen = {stage.key for bundle in self.bundles for engine in bundle.engines.values() for stage in _all(engine)}
        return len(seen) + len(self.bundles)


def _all(stage: Stage) -> Iterator[Stage]:
    yield stage
    for need in stage.needs:
        yield from _all(need)


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
        tokenizer = {name: sha256_of(file) for name, file in _tokenizer_files(checkpoint).items()}
        parts: list[Any] = [[stage.key for stage in self.engines.values()], tokenizer, _scheduler_config(checkpoint)]
        parts += [SCHEMA_VERSION, checkpoint.name, shapes.sizes, shapes.batch, checkpoint.config("vae")]
        parts += [self.plan.interop]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[: stages.KEY_DIGITS]

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
        inputs = exported_shapes(checkpoint, component, shapes)
        probes = probe_shapes(checkpoint, component, shapes)
        config = checkpoint.config(PART_OF[component])
        made_by = {"code": code_sha256(), **{name: version(name) for name in TOOLS}}
        weights = {"weights": plan.source_sha256}
        ours = {"checkpoint": checkpoint, "component": component}
        hoisted = plan.hoist and component == "unet"

        traced = Stage(
            f"{component}: export the graph", work.trace_component,
            {"config": config, "inputs": inputs, **made_by}, {**ours, "shapes": shapes},
        )  # fmt: skip
        module = Stage(
            f"{component}: run the checkpoint's module", work.run_module,
            {"config": config, "inputs": probes, **weights, **made_by}, {**ours, "shapes": shapes},
        )  # fmt: skip
        onnx = Stage(
            f"{component}: write ONNX, {self.recipe.name}", work.write_onnx,
            {"recipe": recipe, "hoisted": hoisted, **weights},
            {**ours, "recipe": self.recipe, "hoisted": hoisted}, (traced,),
        )  # fmt: skip
        return Stage(
            f"{component}: compile for {self.target}, {self.recipe.name}", work.compile_engine,
            {"target": self.target, "version": backend_for(self.target).version()},
            {"component": component, "target": self.target, "recipe": self.recipe, "sides": self._sides(len(probes))},
            (onnx, module),
        )  # fmt: skip

    def _sides(self, count: int) -> list[dict[str, int]]:
        """The numbers of the open dimensions for the first `count` sizes: those that a component is probed at."""
        plan = self.plan
        sizes = plan.shapes.sizes[:count]
        return [dimensions(size, plan.checkpoint.vae_scale_factor, plan.shapes.batch) for size in sizes]


def build(plan: Plan, on_event: Callable[[str, str], None] = lambda kind, text: None) -> Iterator[Bundle]:
    """Build every bundle of the plan that is not up to date, each complete and checked when it is yielded.

    `on_event` is told what happens: "start", "done" or "skip" and the name of a stage or bundle, with the reason.
    Raises OutzoomError for a component below the recipe's `min_psnr_db`. Whatever stops the build, no half-made
    bundle stays; finished stages do, and the next build goes on from them.
    """
    log = BuildLog(plan.out / LOG_NAME, on_event)
    for bundle in plan.bundles:
        if (found := bundle.up_to_date()) is not None:
            log.skip(bundle)
            yield found
            continue
        stages.run(list(bundle.engines.values()), plan.cache_folder, plan.jobs, log.stage)
        yield _pack(bundle)
        log.done(bundle)
        for stage in bundle.engines.values():
            shutil.rmtree(stage.folder(plan.cache_folder), ignore_errors=True)
    for folder in plan.cache_folder.glob(f"{work.write_onnx.__name__}-*"):  # large, and quickly made again
        shutil.rmtree(folder, ignore_errors=True)


class BuildLog:
    """Tells `on_event` of each stage and bundle once, and writes what ran into a file."""

    def __init__(self, file: Path, on_event: Callable[[str, str], None]) -> None:
        self.file, self.on_event = file, on_event
        self.told: set[str] = set()

    def stage(self, event: Event) -> None:
        """What `stages.run` reports."""
        if event.kind == "start":
            self.on_event("start", event.stage.name)
        elif event.record is not None and event.stage.key not in self.told:
            self.told.add(event.stage.key)
            self._tell(event.kind, event.stage.name, event.record)

    def skip(self, bundle: BundlePlan) -> None:
        """A bundle that is there needs none of its stages."""
        keys = {stage.key for engine in bundle.engines.values() for stage in _all(engine)}
        for _ in keys - self.told:
            self.on_event("skip", "")
        self.told |= keys
        self.on_event("skip", f"{bundle.path.name}: up to date, made of the same weights, shapes, recipe and tools")

    def done(self, bundle: BundlePlan) -> None:
        """A bundle was written."""
        text = f"{bundle.path.name}: written"
        self.on_event("done", text)
        self._write(text)

    def _tell(self, kind: str, name: str, record: Record) -> None:
        if kind == "skip":
            text = f"{name}: up to date, made {record.finished} of the same weights, shapes, recipe and tools"
        else:
            text = f"{name}: {record.seconds:.1f} s, peak memory {record.peak_memory_bytes / 2**20:.0f} MiB"
        self.on_event(kind, text)
        self._write(text)

    def _write(self, text: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")


def _pack(bundle: BundlePlan) -> Bundle:
    """Put the engines together: they get a second name in the bundle, nothing is copied."""
    plan = bundle.plan
    with atomic_directory(bundle.path, marker=MANIFEST_NAME) as root:
        components: dict[str, Component] = {}
        files: dict[str, FileEntry] = {}
        for stage in bundle.engines.values():
            described = work.read_engine(stage.folder(plan.cache_folder))
            components |= described.components
            files |= described.files
            for name in described.files:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(stage.folder(plan.cache_folder) / name, root / name)
        (root / TOKENIZER_FOLDER).mkdir()
        for name, file in _tokenizer_files(plan.checkpoint).items():
            shutil.copyfile(file, root / TOKENIZER_FOLDER / name)
        if plan.interop:
            write_interop_files(plan.checkpoint, root)
        files |= describe_files(root, but=files)
        write_manifest(root, _manifest(bundle, components, files))
    return open_manifest(bundle.path, verify=False)


def _manifest(bundle: BundlePlan, components: dict[str, Component], files: dict[str, FileEntry]) -> Manifest:
    plan, checkpoint = bundle.plan, bundle.plan.checkpoint
    recipe = bundle.recipe
    ran = {stage.key: stage for engine in bundle.engines.values() for stage in _all(engine)}
    records = [record for stage in ran.values() if (record := stage.record(plan.cache_folder)) is not None]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        target=bundle.target,
        recipe=RecipeInfo(recipe.name, recipe.weights, recipe.compute),
        source=Source(printable(checkpoint.name), plan.source_sha256),
        sizes=plan.shapes.sizes,
        batch=plan.shapes.batch,
        vae_scale_factor=checkpoint.vae_scale_factor,
        latent_scale=float(checkpoint.config("vae")["scaling_factor"]),
        max_tokens=checkpoint.config("text_encoder")["max_position_embeddings"],
        scheduler=_scheduler_config(checkpoint),
        components=components,
        files=files,
        tools={
            **{name: version(name) for name in ("outzoom", *TOOLS)},
            bundle.target: backend_for(bundle.target).version(),
        },
        build=BuildInfo(bundle.key, tuple(StageInfo(r.name, r.seconds, r.peak_memory_bytes) for r in records)),
    )


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    config = checkpoint.config("text_encoder")
    tokenizer = ClipTokenizer(checkpoint.tokenizer_folder, config["max_position_embeddings"])
    if tokenizer.vocabulary_size > config["vocab_size"]:
        raise UserError(
            f"the tokenizer of '{checkpoint.path}' has {tokenizer.vocabulary_size} tokens, "
            f"its text encoder knows {config['vocab_size']}",
            hint="take both from one checkpoint",
        )


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, Path]:
    files = {name: checkpoint.tokenizer_folder / name for name in TOKENIZER_FILES}
    return {name: file for name, file in files.items() if file.is_file()}


def _scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Without infinite numbers, which JSON lacks (diffusers writes them for keys that mean nothing then)."""
    config = checkpoint.config("scheduler")
    return {k: v for k, v in config.items() if not (isinstance(v, float) and not math.isfinite(v))}


def _check_installed() -> None:
    for package in TOOLS:
        try:
            version(package)
        except PackageNotFoundError:
            raise MissingPackageError(package, "export", "export-all") from None
