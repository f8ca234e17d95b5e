"""The results of a benchmark as data: what `results.json` holds. Units are in the names; MB are 10^6 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..runtime.errors import UserError
from .keyframe_result import KeyframeResult
from .scripts import write_json
from .settings import BenchSettings, from_json, to_json

SCHEMA_VERSION = 1
MIN_FOR_INTERVAL = 5


class Latency(msgspec.Struct, frozen=True):
    """The distribution of `run_count` timings; lower is better."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    run_count: int

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency:
        """Median and percentiles (linearly interpolated) of at least one sample."""
        p10, median, p90 = (round(float(value), 4) for value in np.percentile(samples_ms, (10, 50, 90)))
        return cls(median, p10, p90, len(samples_ms))

    def overlaps(self, other: Latency) -> bool:
        """Whether the ranges from p10 to p90 meet: then the two do not differ beyond noise."""
        return self.p10_ms <= other.p90_ms and other.p10_ms <= self.p90_ms


def ratio_of(samples_ms: Sequence[float], reference_ms: Sequence[float]) -> dict[str, float]:
    """Of the ratios of timings taken in the same rounds: median, 10th and 90th percentile.

    From MIN_FOR_INTERVAL rounds on also the median's 95% confidence interval, `low` and `high`: the percentile
    bootstrap (Efron and Tibshirani 1993, chapter 13).
    """
    ratios = np.divide(samples_ms, reference_ms)
    found = dict(zip(("median", "p10", "p90"), np.percentile(ratios, (50, 10, 90)).round(4).tolist(), strict=True))
    if len(ratios) >= MIN_FOR_INTERVAL:
        from scipy.stats import bootstrap

        interval = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        found |= {"low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}
    return found


class Executed(msgspec.Struct, frozen=True):
    """What an engine computes its products in.

    `counts`: of each kind (Conv, MatMul, attention), how many in which type: int8, bfloat16, float16, float32; "int8
    weights" and "int4 weights" become floats as they are multiplied. `sparse_layers` skip weights that are zero.
    `unmet` are the layers that run in something else than what was built asks for, and in what.
    """

    counts: dict[str, dict[str, int]]
    sparse_layers: int
    unmet: tuple[str, ...]


class Work(msgspec.Struct, frozen=True):
    """What one run of an engine has to do, counted in its graph; see roofline.py."""

    macs: int
    moved_bytes: int  # if each layer reads its operands once, and writes its output once


class ComponentResult(msgspec.Struct, frozen=True):
    """One engine, run alone. `first_run_ms` is the first run after loading, which may still allocate memory."""

    parameters: int
    size_bytes: int
    parity_psnr_db: float | None  # from the bundle's manifest; None: equal to the last bit
    load_ms: float
    first_run_ms: float
    latency: Latency
    executed: Executed | None = None  # None: it can't be told
    work: Work | None = None  # None: its graph can't be read with the packages that are installed


class OpenResult(msgspec.Struct, frozen=True):
    """Opening a bundle in a fresh process, its files probably in the page cache: check, hash, load all engines."""

    from_process_start_ms: float
    after_import_ms: float
    check_ms: float  # manifest, hashes and tokenizer; the rest of after_import_ms is loading engines


class ZoomResult(msgspec.Struct, frozen=True):
    """The zoom from first to last frame, engines loaded and warm unless the name says otherwise."""

    scheduler: str
    keyframe: Latency
    between_frame: Latency
    frame_count: int
    seconds: float
    between_frames_per_second: float
    frames_per_second: float
    frames_per_second_with_open: float  # the process's start and loading counted in


class MemorySample(msgspec.Struct, frozen=True):
    """Resident memory at a time since the measuring process began."""

    seconds: float
    rss_bytes: int


class Stage(msgspec.Struct, frozen=True):
    """What the measuring process does from a time on, since it began, until the next stage."""

    name: str
    from_seconds: float


class MemoryResult(msgspec.Struct, frozen=True):
    """Resident memory of the measuring process; `trace` is evenly spaced, and ends with the zoom."""

    rss_after_import_bytes: int
    rss_after_open_bytes: int
    peak_rss_bytes: int
    trace: tuple[MemorySample, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def open_growth_bytes(self) -> int:
        """By how much opening the bundle grew the process."""
        return self.rss_after_open_bytes - self.rss_after_import_bytes


class KeyframeQuality(msgspec.Struct, frozen=True):
    """A painted keyframe against the reference's; PSNR None: equal to the last bit. Higher is better.

    `frame` is its index in the zoom. The first has the same input in both bundles; in the later ones the
    differences add up.
    """

    frame: int
    border_psnr_db: float | None
    border_ssim: float
    psnr_db: float | None
    ssim: float
    ms_ssim: float | None = None  # None: its package is not installed, or the picture too small for two scales
    ms_ssim_scales: int | None = None  # of 5, as many as the picture is large enough for


class EnergyResult(msgspec.Struct, frozen=True):
    """What a zoom takes, of what `method` names: "measured: RAPL" is the processor's, "measured: battery" the whole
    machine's, "modelled: DEVICE" a prediction for another device.

    `idle_watts` were measured before the zoom, and are subtracted from `keyframe_joules` (more than a frame between
    takes) and `frame_joules` (of all frames, painted ones included), not from `mean_watts`, the power during the zoom.
    """

    method: str
    idle_watts: float | None
    keyframe_joules: float
    frame_joules: float
    mean_watts: float
    battery_hours: float | None = None  # that `BenchSettings.battery_wh` lasts at `mean_watts`, zooming without pause

    @property
    def frames_per_joule(self) -> float:
        """Frames per second and watt, above idle power."""
        return 1 / self.frame_joules

    @property
    def is_measured(self) -> bool:
        """Whether a counter of this machine said so."""
        return self.method.startswith("measured")


class BundleResult(msgspec.Struct, frozen=True):
    """Everything measured of one bundle, in a process of its own.

    `reference` names the fp32 bundle of the same checkpoint and size that `quality` compares with; it is the
    bundle's own name for the reference itself, and None when there was no such bundle.
    """

    name: str
    target: str
    recipe: str
    weights: str
    compute: str
    source: str
    source_sha256: str
    width: int
    height: int
    size_bytes: int
    tools: dict[str, str]
    open: OpenResult
    components: dict[str, ComponentResult]
    zoom: ZoomResult
    memory: MemoryResult
    other_cpu_fraction: float  # of the machine's CPU time meanwhile, taken by other processes
    warnings: tuple[str, ...] = ()
    seam_ratios: tuple[float | None, ...] = ()  # of each painted keyframe; None: the picture is flat
    reference: str | None = None
    quality: tuple[KeyframeQuality, ...] | None = None
    temperature_celsius: float | None = None  # at its end
    energy: EnergyResult | None = None  # None: not measured
    prompt_agreement: float | None = None  # of the last painted keyframe: the cosine that CLIP gives; None: no CLIP


class RuntimeImport(msgspec.Struct, frozen=True):
    """What `import outzoom.runtime` costs in a bare interpreter."""

    latency: Latency
    rss_growth_bytes: int


class Machine(msgspec.Struct, frozen=True):
    """What the benchmark ran on, and the state it was in at the start."""

    cpu_model: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: int  # that this process may run on
    cpu_flags: tuple[str, ...]  # of those that matter to inference
    governor: str | None  # None: not readable
    memory_bytes: int
    memory_available_bytes: int
    load_average_1min: float
    nice: int | None
    os: str
    python: str
    packages: dict[str, str]
    environment: dict[str, str]  # variables that change how many threads there are
    warning: str | None  # that it was busy
    clock_mhz: float | None = None  # None: not readable
    temperature_celsius: float | None = None  # of the hottest thermal zone; None: not readable


class Roofs(msgspec.Struct, frozen=True):
    """The most that the machine can do, as `outzoom devices --calibrate` measured it."""

    bandwidth_gb_per_s: float
    peak_tops: dict[str, float]  # by data type


class Results(msgspec.Struct, frozen=True):
    """The contents of `results.json`."""

    schema_version: int
    created_utc: str
    outzoom_version: str
    command: str
    settings: BenchSettings
    picture_sha256: str
    machine: Machine
    runtime_import: RuntimeImport
    bundles: tuple[BundleResult, ...]
    roofs: Roofs | None = None  # None: the machine was not calibrated
    beside: KeyframeResult | None = None  # other pipelines, if the user had them paint
    wall_seconds: float | None = None  # of the whole benchmark; None: of an older version


def results_as_dict(results: Results) -> dict[str, Any]:
    """The contents of `results.json` as plain dicts, lists, strings and numbers."""
    found: dict[str, Any] = msgspec.json.decode(to_json(results))
    return found


def write_results(results: Results, path: Path) -> None:
    """Write `results.json`, atomically."""
    write_json(results, path)


def read_results(path: Path) -> Results:
    """Read a `results.json`; raises UserError for a file that is none, or of another schema version."""

    class Versioned(msgspec.Struct):
        schema_version: int

    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise UserError(
                f"the results '{path}' have schema version {version}; this outzoom reads {SCHEMA_VERSION}",
                hint="update outzoom, or run the benchmark again",
            )
        results: Results = from_json(data, Results)
        return results
    except OSError as error:
        raise UserError(f"the results '{path}' can't be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' holds no results of outzoom bench: {error}") from error
