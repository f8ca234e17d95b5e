"""Our recipes and other compressors, each of which makes a smaller engine of the same UNet from the same feeds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import msgspec

from ..compress.recipe import Recipe
from ..export import Plan, Shapes, calibration, open_checkpoint, read_recipe, reading, stages
from ..export.checkpoint import Checkpoint
from ..export.compiling import read_engine
from ..export.plan import EXACT, BundlePlan
from ..export.reading import MODEL, WEIGHTS
from ..runtime.errors import OutzoomError, UserError
from ..runtime.files import link_or_copy
from .engines import EngineFile
from .process import run_measured

UNET = "unet"
TORCH = "torch"  # the target of what runs in its compressor's own script
HELD_OUT_PROMPT, HELD_OUT_SEED = "a desert with a road at sunset", 77
SCRIPTS = Path(__file__).parent / "rivals"


@dataclass(frozen=True)
class Task:
    """What all compress: the UNet of a checkpoint at its own size; and the zooms, of which they see the UNet's inputs.

    `keyframes` and `steps` take the place of those in the recipes' calibration.
    """

    checkpoint: str
    work: Path
    keyframes: int
    steps: int

    @property
    def model(self) -> Path:
        """The UNet in float32 as ONNX."""
        return self.work / "float32" / MODEL

    @property
    def feeds(self) -> list[Path]:
        """Inputs to calibrate on, a file for each run."""
        return sorted((self.work / "feeds").glob("*.npz"))

    @property
    def held_out(self) -> list[Path]:
        """Inputs of another zoom, that nobody calibrates on."""
        return sorted((self.work / "held-out").glob("*.npz"))

    @property
    def cache(self) -> Path:
        """Where the results of our stages are."""
        return self.work / "cache"

    @cached_property
    def opened(self) -> Checkpoint:
        """The checkpoint; raises UserError when there is none."""
        return open_checkpoint(self.checkpoint)

    def bundle(self, target: str, recipe: Recipe) -> BundlePlan:
        """The plan of a bundle of ours, of which only the UNet is made; calibrated on the task's zooms."""
        calibration = msgspec.structs.replace(recipe.calibration, keyframes=self.keyframes, steps=self.steps)
        return self._bundle(target, msgspec.structs.replace(recipe, calibration=calibration))

    def prepare(self) -> None:
        """Make the model, the feeds and the held-out feeds."""
        exact = self.bundle(*EXACT)
        other = msgspec.structs.replace(
            exact.recipe.calibration, prompts=(HELD_OUT_PROMPT,), seed=HELD_OUT_SEED, keyframes=1
        )
        held_out = self._bundle(exact.target, msgspec.structs.replace(exact.recipe, calibration=other))
        stages.run([exact.zooms, held_out.zooms], self.cache, 1, lambda event: None)
        for zooms, name in ((exact.zooms, "feeds"), (held_out.zooms, "held-out")):
            folder = _emptied(self.work / name)
            for file in zooms.folder(self.cache).glob(f"{UNET}-*.npz"):
                link_or_copy(file, folder / file.name)
        written = exact.engines[UNET].needs[0]
        stages.run([written], self.cache, 1, lambda event: None)
        folder = _emptied(self.model.parent)
        for name in (MODEL, WEIGHTS):  # no second names of the same files: `onnx` refuses weights that have them
            shutil.copyfile(written.folder(self.cache) / UNET / name, folder / name)

    def _bundle(self, target: str, recipe: Recipe) -> BundlePlan:
        side = self.opened.native_side
        plan = Plan(self.opened, (target,), (recipe,), Shapes(((side, side),)), self.work, cache=self.cache)
        return plan.bundles[0]


class Compressor(Protocol):
    """One that makes an engine of the task's UNet."""

    @property
    def name(self) -> str:
        """As the result file has it."""
        ...

    @property
    def target(self) -> str:
        """What runs the engine."""
        ...

    def compress(self, task: Task) -> dict[str, Any]:
        """Make the engine; what it took, for the result file: at least seconds, memory and `size_bytes`."""
        ...

    def engine(self, task: Task, figures: Mapping[str, Any]) -> EngineFile | None:
        """The engine of which `compress` gave the figures; None when it is not there (any more)."""
        ...


SHARED = (reading.trace_component, reading.run_module, calibration.record_trajectories)  # by all recipes


def _compressing(stage: stages.Stage) -> tuple[stages.Stage, ...]:
    """A stage after those that it needs, each once; for `mixed` some are of other components. Not: what all share."""
    if stage.work in SHARED:
        return ()
    return tuple(dict.fromkeys((*(one for need in stage.needs for one in _compressing(need)), stage)))


@dataclass(frozen=True)
class Ours:
    """A recipe for a target."""

    target: str
    recipe: str

    @property
    def name(self) -> str:
        """As the result file has it."""
        return f"outzoom-{self.target}-{Path(self.recipe).stem}"

    def compress(self, task: Task) -> dict[str, Any]:
        """All that the recipe asks for, from what was traced and recorded on zooms to the checked engine."""
        compiled = task.bundle(self.target, read_recipe(self.recipe)).engines[UNET]
        stages.run([compiled], task.cache, 1, lambda event: None)
        ran = [stage.record(task.cache) for stage in _compressing(compiled)]
        records = [record for record in ran if record is not None]
        return {
            "wall_seconds": round(sum(record.seconds for record in records), 1),
            "peak_rss_bytes": max(record.peak_memory_bytes for record in records),
            "size_bytes": sum(entry.size_bytes for entry in read_engine(compiled.folder(task.cache)).files.values()),
            "stages": {record.name: [record.seconds, record.peak_memory_bytes] for record in records},
        }

    def engine(self, task: Task, figures: Mapping[str, Any]) -> EngineFile | None:
        """The compiled UNet."""
        recipe = read_recipe(self.recipe)
        compiled = task.bundle(self.target, recipe).engines[UNET]
        if compiled.record(task.cache) is None:
            return None
        folder = compiled.folder(task.cache)
        component = read_engine(folder).components[UNET]
        packed = None if component.packed is None else folder / component.packed
        return EngineFile(self.target, folder / component.engine, recipe.compute, packed)


@dataclass(frozen=True)
class Rival:
    """A script of benchmarks/rivals, in an environment of its own."""

    name: str
    target: str
    script: Path
    python: Path

    def compress(self, task: Task) -> dict[str, Any]:
        """Run the script; raises OutzoomError with the end of what it said when it fails."""
        out, outputs = _emptied(self._folder(task)), _emptied(self.outputs(task))
        arguments = {
            "--onnx": task.model, "--checkpoint": task.opened.path, "--feeds": task.work / "feeds",
            "--held-out": task.work / "held-out", "--out": out, "--outputs": outputs,
        }  # fmt: skip
        command = [str(self.python), str(self.script), *(str(part) for pair in arguments.items() for part in pair)]
        ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        with TemporaryFile() as printed:
            measured = run_measured(command, printed, ours)
            printed.seek(0)
            lines = printed.read().decode(errors="replace").splitlines()
        if not lines:
            raise OutzoomError(f"'{self.script}' printed nothing")
        said = json.loads(lines[-1])
        return {
            "wall_seconds": round(measured["wall_seconds"] - said.get("running_seconds", 0.0), 1),
            "peak_rss_bytes": said["peak_rss_bytes"],
            "size_bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
            **{key: said[key] for key in ("model", "packages", "step_seconds") if key in said},
        }

    def engine(self, task: Task, figures: Mapping[str, Any]) -> EngineFile | None:
        """The file that the script named, computed in what the device does fastest."""
        file = self._folder(task) / figures["model"]
        return EngineFile(self.target, file, "fastest") if file.is_file() else None

    def outputs(self, task: Task) -> Path:
        """Where a script that runs the held-out feeds by itself leaves what it makes of each, as .npy files."""
        return task.work / "outputs" / self.name

    def _folder(self, task: Task) -> Path:
        return task.work / "models" / self.name


def rivals(environments: Path) -> list[Rival]:
    """Those that we compare with, in the environments of benchmarks/rivals/*.txt, each in the folder of its name.

    Raises UserError for an environment that is not there.
    """
    known = {
        "nncf-int8": ("openvino-cpu", "nncf"),
        "nncf-int4": ("openvino-cpu", "nncf"),
        "onnxruntime-int8": ("onnxruntime", "onnxruntime"),
        "onnxruntime-int4": ("onnxruntime", "onnxruntime"),
        "neural-compressor-int4": (TORCH, "neural-compressor"),
    }
    found = []
    for name, (target, environment) in known.items():
        python = environments.absolute() / environment / "bin" / "python"
        if not python.exists():
            raise UserError(f"there is no '{python}'", hint=f"{SCRIPTS / environment}.txt says how it is made")
        found.append(Rival(name, target, SCRIPTS / f"{name.replace('-', '_')}.py", python))
    return found


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
