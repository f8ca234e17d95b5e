"""What Snapdragon's HTP takes, and what it computes in emulation.

    python -m outzoom.benchmarks.qnn CHECKPOINT --work DIR --out benchmarks/results/qnn-demo.json

For every component, recipe and SoC a context binary is made: the time that it takes, its size, what is left to the CPU.
Those for the SoCs that `--emulate` names are run: on the probe that builds check a component with, and on inputs that
zooms recorded for calibration, here or elsewhere: see qnn_emulation.py. A second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..export import Plan, Shapes, open_checkpoint, read_recipe, stages
from ..export.parity import tensor_psnr_db
from ..export.plan import BundlePlan
from ..export.reading import MODEL, OUTPUT, load_arrays
from ..runtime.backends import Array, Loading, backend_for
from ..runtime.backends.qnn_origin import PACKAGE, SOCS
from ..runtime.bundle import COMPONENTS
from ..runtime.errors import OutzoomError, printable
from ..runtime.files import atomic_directory, scratch_directory
from .machine import describe_machine
from .qnn_emulation import INPUTS, emulate, read_output
from .results import Machine
from .scripts import complain, write_json

SCHEMA_VERSION = 1
RECIPES = ("a16w8", "a8w8")
EMULATED = ("SM8650",)
ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})
CONTEXT = "EPContext"
PROBE = "probe"


class Context(msgspec.Struct, frozen=True):
    """A component's engine for a SoC, or why there is none; PSNR in dB of its outputs.

    Times are the CPU's, of all threads, which other work does not lengthen; those of emulation are not a phone's.
    `probe_psnr_db`: to PyTorch's module in emulation, `graph_psnr_db`: the same of the ONNX model on ONNX Runtime,
    which is what a manifest says. `zoom_psnr_db`: in emulation to the fp32 engine, on recorded inputs.
    """

    component: str
    recipe: str
    soc: str
    refused: str | None = None
    compile_cpu_seconds: float | None = None
    engine_bytes: int | None = None
    operators_on_cpu: dict[str, int] = {}
    graph_psnr_db: float | None = None
    probe_psnr_db: float | None = None
    zoom_psnr_db: tuple[float, ...] = ()
    emulated_cpu_seconds: float | None = None  # of one run
    emulated_on: str | None = None  # the processor


class QnnResult(msgspec.Struct, frozen=True):
    """The contents of the result file; `samples`: the recorded inputs of each component."""

    schema_version: int
    command: str
    date: str
    model: str
    size: tuple[int, int]
    packages: dict[str, str]
    machine: Machine
    samples: dict[str, tuple[str, ...]]
    entries: tuple[Context, ...]


@dataclass(frozen=True)
class Measurement:
    """What is measured of a checkpoint, and how; `work` keeps what was made."""

    plan: Plan
    emulated: tuple[str, ...]
    sample_count: int

    @cached_property
    def exact(self) -> BundlePlan:
        """The engines that others are compared with."""
        plan = self.plan
        return Plan(plan.checkpoint, ("onnxruntime",), (read_recipe("fp32"),), plan.shapes, plan.out).bundles[0]

    @cached_property
    def samples(self) -> dict[str, list[Path]]:
        """An even choice of what zooms recorded for each component."""
        cache, zooms = self.plan.cache_folder, self.plan.bundles[0].zooms
        stages.run([*self.exact.engines.values(), zooms], cache, 1, _tell)
        found = {}
        for component in COMPONENTS:
            files = sorted(zooms.folder(cache).glob(f"{component}-*.npz"))
            chosen = np.unique(np.linspace(0, len(files) - 1, self.sample_count).round().astype(int))
            found[component] = [files[index] for index in chosen]
        return found

    def made(self, bundle: BundlePlan, component: str) -> Context:
        """Make a context; it is kept, with inputs to run it on, where that is asked for."""
        cache, backend = self.plan.cache_folder, backend_for(bundle.target)
        found = Context(component, bundle.recipe.name, soc_of(bundle))
        stages.run(list(bundle.engines[component].needs), cache, 1, _tell)
        onnx, module = (stage.folder(cache) for stage in bundle.engines[component].needs)
        with scratch_directory(self.plan.out / "engine") as folder:
            started = time.process_time()
            try:
                engine = backend.compile(onnx / component / MODEL, folder)
            except OutzoomError as error:
                return msgspec.structs.replace(found, refused=printable(str(error).partition("\n")[0]))
            found = msgspec.structs.replace(
                found,
                compile_cpu_seconds=round(time.process_time() - started, 1),
                engine_bytes=sum(file.stat().st_size for file in folder.iterdir()),
                operators_on_cpu=operators_on_cpu(engine),
            )
            if found.soc in self.emulated:
                with atomic_directory(self.case(found)) as case:
                    shutil.copytree(folder, case, dirs_exist_ok=True)
                    (probe,) = sorted(module.glob("*.npz"))
                    for name, file in {PROBE: probe, **{one.stem: one for one in self.samples[component]}}.items():
                        np.savez(case / f"{INPUTS}{name}.npz", **_feeds(file))
        return found

    def compared(self, bundle: BundlePlan, found: Context) -> Context:
        """What was emulated of a context, beside what it should be."""
        cache, case = self.plan.cache_folder, self.case(found)
        onnx, module = (stage.folder(cache) for stage in bundle.engines[found.component].needs)
        (probe,) = sorted(module.glob("*.npz"))
        wanted = load_arrays(probe)[OUTPUT]
        exact = self.exact.engines[found.component].folder(cache) / found.component / MODEL
        emulated = read_output(case, PROBE)
        samples = self.samples[found.component]
        return msgspec.structs.replace(
            found,
            graph_psnr_db=_psnr_db(wanted, *_outputs(onnx / found.component / MODEL, [probe])),
            probe_psnr_db=_psnr_db(wanted, emulated.output),
            zoom_psnr_db=tuple(
                _psnr_db(output, read_output(case, file.stem).output)
                for file, output in zip(samples, _outputs(exact, samples), strict=True)
            ),
            emulated_cpu_seconds=round(emulated.cpu_seconds, 1),
            emulated_on=emulated.cpu_model,
        )

    def case(self, found: Context) -> Path:
        """Where a context is kept."""
        return self.cases / found.soc / found.recipe / found.component

    @property
    def cases(self) -> Path:
        """The contexts to run, and what they made."""
        return self.plan.out / "cases"


def soc_of(bundle: BundlePlan) -> str:
    """The name of the SoC that a bundle is for."""
    return bundle.target.rpartition("-")[2].upper()


def operators_on_cpu(engine: Path) -> dict[str, int]:
    """How often each operator is left to the CPU, but for rounding what goes in and out."""
    import onnx_ir as ir

    counted = Counter(node.op_type for node in ir.load(engine).graph)
    return {name: count for name, count in sorted(counted.items()) if name not in {*ROUNDING, CONTEXT}}


def _outputs(engine: Path, files: Sequence[Path]) -> list[Array]:
    """The first output of an ONNX model on ONNX Runtime, for the inputs in each file."""
    loaded = backend_for("onnxruntime").load(engine, Loading())
    found = [next(iter(loaded.run(_feeds(file)).values())) for file in files]
    loaded.close()
    return found


def _feeds(file: Path) -> dict[str, Any]:
    return {name: array for name, array in load_arrays(file).items() if name != OUTPUT}


def _psnr_db(wanted: Array, made: Array) -> float:
    return round(tensor_psnr_db(wanted, made), 2)


def run(args: argparse.Namespace) -> None:
    """Measure what the result file does not have yet."""
    opened = open_checkpoint(args.checkpoint)
    shapes = Shapes(((opened.native_side, opened.native_side),))
    targets = tuple(f"onnxruntime-qnn-{soc.lower()}" for soc in args.socs)
    plan = Plan(opened, targets, tuple(read_recipe(name) for name in args.recipes), shapes, args.work)
    measurement = Measurement(plan, tuple(args.emulate), args.samples)
    known = msgspec.json.decode(args.out.read_bytes(), type=QnnResult).entries if args.out.exists() else ()
    entries = {(one.recipe, one.component, one.soc): one for one in known}
    planned = {(one.recipe.name, name, soc_of(one)): one for one in plan.bundles for name in COMPONENTS}

    def save(key: tuple[str, str, str], found: Context) -> None:
        entries[key] = found
        _say(f"{' '.join(key)}: {found}")
        _write(args, measurement, tuple(entries.values()))

    for key, bundle in planned.items():
        if key not in entries:
            save(key, measurement.made(bundle, key[1]))
    emulate(measurement.cases, args.jobs, _say)
    for key, bundle in planned.items():
        found = entries[key]
        if found.soc in args.emulate and found.refused is None and found.emulated_cpu_seconds is None:
            save(key, measurement.compared(bundle, found))


def _write(args: argparse.Namespace, measurement: Measurement, entries: tuple[Context, ...]) -> None:
    plan = measurement.plan
    result = QnnResult(
        SCHEMA_VERSION, f"python -m outzoom.benchmarks.qnn CHECKPOINT --work DIR --out {args.out.name}",
        time.strftime("%Y-%m-%d"), printable(plan.checkpoint.name), plan.shapes.sizes[0],
        {name: version(name) for name in ("outzoom", "onnxruntime", PACKAGE)}, describe_machine(),
        {name: tuple(file.name for file in files) for name, files in measurement.samples.items()}, entries,
    )  # fmt: skip
    write_json(result, args.out)


def _tell(event: stages.Event) -> None:
    if event.kind != "skip":
        _say(f"{event.kind}: {event.stage.name}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--socs", nargs="+", choices=SOCS, default=list(SOCS))
    parser.add_argument("--emulate", nargs="*", choices=SOCS, default=list(EMULATED), help="whose contexts are run")
    parser.add_argument("--samples", type=int, default=2, help="recorded inputs of each component")
    parser.add_argument("--jobs", type=int, default=1, help="emulations at a time")
    parser.add_argument("--work", type=Path, required=True, help="for stages, and the engines to run")
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    args = parser.parse_args()
    try:
        run(args)
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
