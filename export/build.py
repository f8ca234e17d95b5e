"""`export-all`: run the stages of a plan and put their engines together, one bundle for each target and recipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ..runtime.backends import maker_version
from ..runtime.bundle import (
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
from ..runtime.errors import OutzoomError, printable
from ..runtime.files import atomic_directory, link_or_copy
from . import compiling, stages, writing
from .interop import write_interop_files
from .plan import TOOLS, BundlePlan, Plan, all_stages, scheduler_config, tokenizer_files
from .sensitivity import CHOSEN
from .stages import Event, Record
from .targets import FORMS

LOG_NAME = "build.log"
LEFT_SECONDS = 24 * 3600.0


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
        packed = _pack(bundle)
        log.done(bundle)
        yield packed
    _clear_engines(plan)


def _clear_engines(plan: Plan) -> None:
    """Take out of the cache what is large and quickly made again: this plan's, and what was left by others a day ago.

    What is newer may belong to another build that shares the cache.
    """
    own = {
        stage.folder(plan.cache_folder)
        for bundle in plan.bundles for engine in bundle.engines.values() for stage in all_stages(engine)
    }  # fmt: skip
    for made in (writing.write_onnx, compiling.compile_engine):
        for folder in plan.cache_folder.glob(f"{made.__name__}-*"):
            with suppress(FileNotFoundError):  # another build may clear away at the same time
                if folder in own or time.time() - folder.stat().st_mtime > LEFT_SECONDS:
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
        keys = {stage.key for engine in bundle.engines.values() for stage in all_stages(engine)}
        for _ in keys - self.told:
            self.on_event("skip", "")
        self.told |= keys
        self.on_event("skip", f"{bundle.path.name}: up to date, made of the same weights, shapes, recipe and tools")

    def done(self, bundle: BundlePlan) -> None:
        """A bundle was written; what its engines' makers noted goes into the file."""
        for stage in bundle.engines.values():
            for note in compiling.read_engine(stage.folder(bundle.plan.cache_folder)).notes:
                self._write(f"{bundle.path.name}: {note}")
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
    cache, mixed = bundle.plan.cache_folder, bundle.recipe.mixed
    with atomic_directory(bundle.path, marker=MANIFEST_NAME) as root:
        for stage in bundle.mixed:
            shutil.copyfile(stage.folder(cache) / CHOSEN, root / CHOSEN)
        made = assemble(bundle, root, [stage.folder(cache) for stage in bundle.engines.values()])
        if mixed and mixed.budget_mb and made.size_bytes > mixed.budget_mb * 1e6:
            raise OutzoomError(
                f"{bundle.path.name} takes {made.size_bytes / 1e6:.2f} MB; the budget is {mixed.budget_mb:g}",
                hint="its graphs took more than was set aside for them: ask for that much less",
            )
    return open_manifest(bundle.path, verify=False)


def assemble(bundle: BundlePlan, root: Path, engines: Iterable[Path]) -> Bundle:
    """Make a bundle in `root` of the folders that the last stages of its engines left."""
    plan = bundle.plan
    components: dict[str, Component] = {}
    files: dict[str, FileEntry] = {}
    for folder in engines:
        described = compiling.read_engine(folder)
        components |= described.components
        files |= described.files
        for name in described.files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(folder / name, root / name)
    (root / TOKENIZER_FOLDER).mkdir()
    for name, file in tokenizer_files(plan.checkpoint).items():
        shutil.copyfile(file, root / TOKENIZER_FOLDER / name)
    if plan.interop:
        write_interop_files(plan.checkpoint, root)
    files |= describe_files(root, but=files)
    write_manifest(root, _manifest(bundle, components, files))
    return open_manifest(root, verify=False)


def _info(record: Record) -> StageInfo:
    return StageInfo(record.name, record.seconds, record.peak_memory_bytes, record.cpu_seconds)


def _manifest(bundle: BundlePlan, components: dict[str, Component], files: dict[str, FileEntry]) -> Manifest:
    plan, checkpoint = bundle.plan, bundle.plan.checkpoint
    recipe = bundle.recipe
    ran = {stage.key: stage for engine in bundle.engines.values() for stage in all_stages(engine)}
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
        scheduler=scheduler_config(checkpoint),
        components=components,
        files=files,
        tools={
            **{name: version(name) for name in ("outzoom", *TOOLS)},
            bundle.target: maker_version(bundle.target),
        },
        build=BuildInfo(bundle.key, tuple(_info(record) for record in records)),
        checked_on=FORMS[bundle.target].checked_on,
    )
