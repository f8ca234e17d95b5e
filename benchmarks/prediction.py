"""Predictions against reality: `python -m outzoom.benchmarks.prediction [BUNDLE]... --out FILE [--plot FILE]`.

The running machine is calibrated, with layers that no bundle has, and every component of every bundle predicted from
that; then each is timed. Beside it stand predictions for devices that others have published times of.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from ..hardware import Profile, bundle_workload, component_costs, full_size, read_profile
from ..hardware.calibration import PASSES, calibrate, fastest_seconds
from ..hardware.costs import SUSTAINED_FRACTION
from ..hardware.profiles import write_host
from ..runtime import open_manifest
from ..runtime.inpainting import Inpainting
from .machine import describe_machine
from .measure import random_feeds, run_alone
from .results import Latency, Machine
from .scripts import write_json
from .settings import BenchSettings

SCHEMA_VERSION = 1
RUNS_SECONDS = 0.5  # of runs that the fastest is taken of
AI_HUB = "Qualcomm AI Hub Models 0.46.1, perf.yaml of Stable Diffusion 2.1, w8a16"
APPLE = "apple/ml-stable-diffusion README, SD 2.1 base, 6 bits, 20 steps"
MLPERF = "MLPerf inference 4.0, SDXL on Jetson AGX Orin, SingleStream, mean"
# Milliseconds of text encoder, UNet and VAE decoder.
PHONES = {
    "snapdragon-8-gen2": (7.96, 95.8, 266.8),
    "snapdragon-8-gen3": (5.60, 69.7, 201.9),
    "snapdragon-8-elite": (4.63, 53.2, 178.3),
    "snapdragon-x-elite": (8.35, 96.3, 264.1),
}
STEPS_PER_SECOND = {"apple-m1": 2.19, "apple-m2": 3.07}  # of iPads; each step is two passes of the UNet
# MACs of a UNet pass at 1024x1024, counted by torch on diffusers' module of that configuration (2,567,463,684
# parameters), and of the VAE's decoder, from SD2's: convolutions grow with the pixels, its attention with their square.
SDXL_UNET_GMACS, SDXL_VAE_GMACS, SDXL_PASSES = 3380.6, 5235.2, 40
SDXL_ORIN_MS = 12_928.0


class Row(msgspec.Struct, frozen=True):
    """A component that was timed here; `error` is predicted over typical, less 1.

    `typical_ms` is the median, over passes minutes apart, of the fastest run in each. So are the layers' times of the
    calibration: what other processes take only makes runs longer, and a machine may be quick or slow for minutes.
    `quickest_ms` and `slowest_ms` are the fastest run in the best and in the worst pass.
    """

    bundle: str
    component: str
    predicted_ms: float
    typical_ms: float
    quickest_ms: float
    slowest_ms: float
    measured: Latency
    error: float


class Published(msgspec.Struct, frozen=True):
    """A time that others measured; `fitted_ms` is what the model says with the fraction of the peak that the others
    sustain."""

    device: str
    what: str
    source: str
    published_ms: float
    predicted_ms: float
    error: float
    fitted_ms: float
    fitted_error: float


class PredictionResult(msgspec.Struct, frozen=True):
    """The contents of the result file; errors are mean absolute ones."""

    schema_version: int
    created_utc: str
    outzoom_version: str
    command: str
    machine: Machine
    calibrated_layers: int
    mean_absolute_error: float | None  # None: nothing was timed here
    mean_absolute_error_by_target: dict[str, float]
    rows: tuple[Row, ...]
    sustained_fraction: float
    published_mean_absolute_error: float
    published_fitted_mean_absolute_error: float
    published: tuple[Published, ...]


def main() -> None:
    """Calibrate, predict, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, help="without any, published times alone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--keep-calibration", action="store_true", help="use the one that there is")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--passes", type=int, default=PASSES, help="over all layers, and over all components")
    given = parser.parse_args()
    machine = describe_machine()
    rows: list[Row] = []
    layer_count = 0
    if given.bundles:
        host = read_profile("host") if given.keep_calibration else _calibrated(given.passes)
        rows = rows_of(given.bundles, host, given.runs, given.passes)
        layer_count = sum(len(points) for table in host.measured.values() for points in table.values())
    published = published_rows()
    result = PredictionResult(
        SCHEMA_VERSION, datetime.now(timezone.utc).isoformat(timespec="seconds"), version("outzoom"),
        shlex.join(["python", "-m", "outzoom.benchmarks.prediction", *(bundle.name for bundle in given.bundles)]),
        machine, layer_count, *errors_of(rows), tuple(rows), SUSTAINED_FRACTION,
        mean_absolute([row.error for row in published]), mean_absolute([row.fitted_error for row in published]),
        tuple(published),
    )  # fmt: skip
    write_json(result, given.out)
    if given.plot and rows:
        from .prediction_plots import against_reality

        against_reality(result.rows, given.plot)
    for row in rows:
        print(f"{row.bundle:26} {row.component:14} {row.predicted_ms:9.2f} {row.typical_ms:9.2f} {row.error:+.0%}")
    if result.mean_absolute_error is not None:
        print(f"mean absolute error {result.mean_absolute_error:.1%}")


def _calibrated(passes: int) -> Profile:
    """The running machine, measured now; `outzoom predict --device host` then has it, too."""
    host = calibrate(lambda text: print(f"calibrate: {text}", file=sys.stderr), passes)
    write_host(host)
    return host


def rows_of(paths: Sequence[Path], host: Profile, runs: int, passes: int = PASSES) -> list[Row]:
    """Every component of the bundles, predicted before it is timed; then timed in passes, minutes apart."""
    opened = [open_manifest(path, verify=False) for path in paths]
    costs = {
        (bundle.path.name, name): cost.seconds * 1e3
        for bundle in opened for name, cost in component_costs(bundle_workload(bundle), host).items()
    }  # fmt: skip
    fastest: dict[tuple[str, str], list[float]] = {}
    measured: dict[tuple[str, str], Latency] = {}
    for _ in range(passes):
        for bundle in opened:
            inpainting = Inpainting(bundle)
            for name in bundle.manifest.components:
                key, engine, feeds = (bundle.path.name, name), inpainting.engine(name), random_feeds(inpainting, name)
                if key not in measured:
                    _, samples_ms = run_alone(engine, feeds, BenchSettings(runs=runs, budget_seconds=5))
                    measured[key] = Latency.of(samples_ms)
                fastest.setdefault(key, []).append(1e3 * fastest_seconds(engine, feeds, RUNS_SECONDS))
                inpainting.close()
    return [_row(key, costs[key], fastest[key], one) for key, one in measured.items()]


def _row(key: tuple[str, str], predicted_ms: float, passes_ms: Sequence[float], measured: Latency) -> Row:
    typical_ms = median(passes_ms)
    return Row(
        *key, round(predicted_ms, 3), round(typical_ms, 3), round(min(passes_ms), 3), round(max(passes_ms), 3),
        measured, round(predicted_ms / typical_ms - 1, 4),
    )  # fmt: skip


def errors_of(rows: Sequence[Row]) -> tuple[float | None, dict[str, float]]:
    """Mean absolute error of all rows, and of those of each target."""
    targets: dict[str, list[float]] = {}
    for row in rows:
        targets.setdefault(row.bundle.rpartition("-")[0], []).append(row.error)
    overall = mean_absolute([row.error for row in rows]) if rows else None
    return overall, {name: mean_absolute(each) for name, each in targets.items()}


def mean_absolute(errors: Sequence[float]) -> float:
    """Of relative errors."""
    return round(float(np.abs(errors).mean()), 4)


def published_rows() -> list[Published]:
    """What others measured, beside what the profiles predict.

    The fitted prediction takes the fraction of the peak that the other devices sustain (the geometric mean, without the
    row's own device): it says how far the model carries from devices that are known to one that is not.
    """
    found: list[tuple[str, str, str, float, float]] = []
    for device, times in PHONES.items():
        costs = component_costs(full_size("w8a16"), read_profile(device))
        for component, milliseconds in zip(("text_encoder", "unet", "vae_decoder"), times, strict=True):
            found.append((device, component, AI_HUB, milliseconds, costs[component].seconds * 1e3))
    for device, rate in STEPS_PER_SECOND.items():
        costs = component_costs(full_size("fp16"), read_profile(device))
        found.append((device, "two UNet passes", APPLE, 1e3 / rate, 2e3 * costs["unet"].seconds))
    orin = read_profile("jetson-agx-orin").peak_tops["float16"].value * SUSTAINED_FRACTION
    gmacs = SDXL_PASSES * SDXL_UNET_GMACS + SDXL_VAE_GMACS
    found.append(("jetson-agx-orin", "SDXL, 20 steps, in float16", MLPERF, SDXL_ORIN_MS, 2 * gmacs / orin))
    return [_published(row, found) for row in found]


def _published(
    row: tuple[str, str, str, float, float], rows: Sequence[tuple[str, str, str, float, float]]
) -> Published:
    device, what, source, published_ms, predicted_ms = row
    ratios = [one[3] / one[4] for one in rows if one[0] != device]
    fitted = predicted_ms * float(np.exp(np.mean(np.log(ratios))))
    return Published(
        device, what, source, published_ms, round(predicted_ms, 2), round(predicted_ms / published_ms - 1, 4),
        round(fitted, 2), round(fitted / published_ms - 1, 4),
    )  # fmt: skip


if __name__ == "__main__":
    main()
