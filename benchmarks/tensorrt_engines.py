"""Which graphs TensorRT takes: every engine of bundles is built by the real builder, for GPUs that are not here.

    python -m outzoom.benchmarks.tensorrt_engines BUNDLE... --out benchmarks/results/tensorrt-demo.json

Each engine is built by tensorrt_rtx in a process of its own, one after another; a second run goes on where the first
stopped. Nothing is run: that takes the GPU. A bundle of another target shows what TensorRT refuses of its graphs.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import msgspec

from ..runtime import open_manifest
from ..runtime.backends.tensorrt import TensorRt
from ..runtime.backends.tensorrt_build import RTX, BuildOptions, Model
from ..runtime.backends.tensorrt_origin import ENGINE_NAME
from ..runtime.bundle import Bundle
from ..runtime.engines import engine_files
from ..runtime.errors import OutzoomError, printable
from ..runtime.files import scratch_directory
from ..runtime.shapes import dimensions
from .machine import describe_machine
from .process import child_env, run_measured
from .results import Machine
from .scripts import complain, write_json

SCHEMA_VERSION = 1
CAPABILITIES = ("8.6", "8.7", "8.9", "12.0")
PATHS = re.compile(r"'[^']*/(model\.onnx)'")  # a folder that was made for the build alone


class Built(msgspec.Struct, frozen=True):
    """An engine that was built, or why not; `name` is the bundle's, or what it shows of how it was built."""

    name: str
    target: str
    component: str
    capability: str
    onnx_bytes: int
    engine_bytes: int | None = None
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    refused: str | None = None


class EnginesResult(msgspec.Struct, frozen=True):
    """The contents of the result file."""

    schema_version: int
    command: str
    date: str
    package: str
    version: str
    model: str
    machine: Machine
    entries: tuple[Built, ...]


def build_one(bundle: Path, component: str, capability: str, work: Path) -> Built:
    """Build an engine in this process, and remove it."""
    opened = open_manifest(bundle, verify=False)
    manifest = opened.manifest
    sides = dimensions(manifest.sizes[0], manifest.vae_scale_factor, manifest.batch)
    with engine_files(opened, component).complete() as onnx, scratch_directory(work / "engine") as folder:
        onnx_bytes = sum(file.stat().st_size for file in onnx.parent.glob(f"{onnx.name}*"))
        model = Model(onnx, manifest.components[component].inputs, sides, manifest.recipe.compute)
        built = Built(bundle.name, manifest.target, component, capability, onnx_bytes)
        started = time.monotonic()
        try:
            TensorRt(RTX, BuildOptions()).build_ahead(model, folder / "built" / ENGINE_NAME, [capability])
        except OutzoomError as error:
            return msgspec.structs.replace(built, refused=PATHS.sub(r"\1", str(error)))
        seconds = round(time.monotonic() - started, 1)
        size_bytes = (folder / "built" / ENGINE_NAME).stat().st_size
    return msgspec.structs.replace(built, engine_bytes=size_bytes, seconds=seconds)


def measured(bundle: Bundle, component: str, capability: str, work: Path) -> Built:
    """Build an engine in a process of its own: a builder that crashes is a refusal, too."""
    command = [sys.executable, "-m", __spec__.name, str(bundle.path), "--one", component, capability]
    with TemporaryFile() as printed:
        try:
            cost = run_measured([*command, "--work", str(work)], printed, child_env())
        except OutzoomError as error:
            refused = printable(str(error).partition("\n")[0].partition(":")[0])
            return Built(bundle.path.name, bundle.manifest.target, component, capability, 0, refused=refused)
        printed.seek(0)
        built = msgspec.json.decode(printed.read(), type=Built)
    return msgspec.structs.replace(built, peak_rss_bytes=cost["peak_rss_bytes_of_any_process"])


def wanted(bundles: Sequence[Path], components: Sequence[str]) -> Iterator[tuple[Bundle, str]]:
    """The components of bundles that have one engine."""
    for path in bundles:
        bundle = open_manifest(path, verify=False)
        for name, component in bundle.manifest.components.items():
            if component.engine.endswith(".onnx") and (not components or name in components):
                yield bundle, name


def run(args: argparse.Namespace) -> None:
    """Build what the result file does not have yet."""
    known = msgspec.json.decode(args.out.read_bytes(), type=EnginesResult).entries if args.out.exists() else ()
    entries = {(one.name, one.component, one.capability): one for one in known}
    args.work.mkdir(parents=True, exist_ok=True)
    for bundle, component in wanted(args.bundles, args.components):
        for capability in args.capabilities:
            key = (bundle.path.name, component, capability)
            if key not in entries:
                entries[key] = measured(bundle, component, capability, args.work)
                print(" ".join(key), entries[key].refused or entries[key].engine_bytes, file=sys.stderr)
                _write(args, bundle.manifest.source.name, tuple(entries.values()))


def _write(args: argparse.Namespace, model: str, entries: tuple[Built, ...]) -> None:
    result = EnginesResult(
        SCHEMA_VERSION, f"python -m outzoom.benchmarks.tensorrt_engines BUNDLE... --out {args.out.name}",
        time.strftime("%Y-%m-%d"), RTX, TensorRt(RTX).version(), model, describe_machine(), entries,
    )  # fmt: skip
    write_json(result, args.out)


def main() -> int:
    """Build all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--components", nargs="+", default=[], help="default: all")
    parser.add_argument("--capabilities", nargs="+", default=list(CAPABILITIES), help="of the GPUs, such as 8.6")
    parser.add_argument("--work", type=Path, required=True, help="for one engine at a time")
    parser.add_argument("--out", type=Path, help="the result, a JSON file")
    parser.add_argument("--one", nargs=2, metavar=("COMPONENT", "CAPABILITY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.one is not None:
            component, capability = args.one
            built = build_one(args.bundles[0], component, capability, args.work)
            sys.stdout.write(msgspec.json.encode(built).decode())
        elif args.out is None:
            parser.error("--out is needed")
        else:
            run(args)
    except OutzoomError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
