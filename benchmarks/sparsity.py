"""Whether weights that are zero make OpenVINO's processor plugin faster: steps of the UNet, dense and sparse in turn.

    outzoom export-all --target openvino-cpu --recipe int8 --recipe benchmarks/recipes/sparse24-int8.toml --out BUNDLES
    python -m outzoom.benchmarks.sparsity BUNDLES/openvino-cpu-int8 BUNDLES/openvino-cpu-sparse24-int8 --out RESULT.json

The sparse UNet runs twice: as outzoom opens it, and with the plugin's kernels that keep sparse weights packed. ONNX
Runtime has no such kernels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..runtime import UserError, open_manifest
from ..runtime.backends import backend_for
from ..runtime.backends.openvino import OpenVino, OpenVinoEngine
from ..runtime.errors import OutzoomError
from ..runtime.inpainting import Inpainting
from .executed import loading_of, run_by_openvino
from .machine import describe_machine
from .measure import random_feeds
from .results import Executed, Latency, Machine, ratio_of
from .scripts import complain, write_json

COMMAND = "python -m outzoom.benchmarks.sparsity DENSE SPARSE --out RESULT.json"
UNET = "unet"
KERNELS = {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "0.4"}  # for layers with more zeros than that
WARM_UPS = 3


class Step(msgspec.Struct, frozen=True):
    """A UNet: its bundle, the plugin's options, what it ran in, and its step beside the dense one's."""

    bundle: str
    options: dict[str, str]
    executed: Executed
    latency: Latency
    ratio_to_dense: dict[str, float]


class SparsityResult(msgspec.Struct, frozen=True):
    """The contents of the result file."""

    command: str
    date: str
    checkpoint: str
    machine: Machine
    steps: tuple[Step, ...]


def measured(dense: Path, sparse: Path, rounds: int) -> tuple[Step, ...]:
    """Time the UNets in turn; raises UserError for bundles of another target."""
    asked = [(dense, {}), (sparse, {}), (sparse, KERNELS)]
    opened = [_opened(bundle, options) for bundle, options in asked]
    samples_ms: list[list[float]] = [[] for _ in opened]
    for number in range(WARM_UPS + rounds):
        for samples, (engine, feeds, _) in zip(samples_ms, opened, strict=True):
            started = time.perf_counter()
            engine.run(feeds)
            if number >= WARM_UPS:
                samples.append((time.perf_counter() - started) * 1e3)
    return tuple(
        Step(bundle.name, options, ran, Latency.of(samples), ratio_of(samples, samples_ms[0]))
        for (bundle, options), (_, _, ran), samples in zip(asked, opened, samples_ms, strict=True)
    )


def _opened(path: Path, options: Mapping[str, str]) -> tuple[OpenVinoEngine, dict[str, Any], Executed]:
    """The engine of a bundle's UNet with options of the plugin's, inputs for it, and what it computes in."""
    bundle = open_manifest(path)
    backend = backend_for(bundle.manifest.target)
    if not isinstance(backend, OpenVino):
        raise UserError(f"'{path}' is for {bundle.manifest.target}", hint="give bundles of openvino-cpu")
    inpainting = Inpainting(bundle)
    with inpainting.engine_file(UNET) as file:
        compiled = backend.compiled(file, loading_of(inpainting, UNET), options)
        return OpenVinoEngine(compiled), random_feeds(inpainting, UNET), run_by_openvino(file, compiled)


def main() -> int:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("sparse", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    args = parser.parse_args()
    try:
        machine, checkpoint = describe_machine(), open_manifest(args.dense, verify=False).manifest.source.name
        steps = measured(args.dense, args.sparse, args.rounds)
    except OutzoomError as error:
        return complain(error)
    write_json(SparsityResult(COMMAND, time.strftime("%Y-%m-%d"), checkpoint, machine, steps), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
