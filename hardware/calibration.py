"""Measures the running machine: how long layers take in the real engines, by size and type, and what follows from it.

Each layer stands in a chain of itself; the time of the longer chain less that of the shorter one is its own. What a
convolution takes includes bringing its input into the order that it likes, since the normalization before it is in the
chain, whose time is taken off.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..runtime.backends import BACKENDS, Engine, Loading, backend_for
from ..runtime.errors import MissingPackageError, OutzoomError
from ..runtime.machine import cpu, read_text
from .measured import CALL
from .profiles import HOST, DataType, Figure, Point, Profile
from .synthetic import Cell, cells, write_chain

SHORT, LONG = 1, 5
PASSES = 3  # over everything, minutes apart: a machine that is slow or quick for a while is not so all the time
BUDGET_SECONDS = 0.07  # for the timed runs of a chain in a pass, of which there are at least MIN_RUNS
MIN_RUNS, MAX_RUNS = 5, 200
PATIENCE = 10
LEAST_SECONDS = 1e-7
LARGE_ROWS = 2**20  # of sums that no cache of a small processor holds
ASSUMED_GB_PER_S = 20.0
BEFORE_CONVOLUTIONS = ("Sigmoid", "GroupNormalization")
ALMOST_NOTHING = Cell("Gelu", 64, 1, 1, 1, (1, 1, 64))
# What each engine is asked to compute in, and which type its weights are stored in for that.
VARIANTS: dict[str, dict[DataType, str]] = {
    "onnxruntime": {"float32": "float32", "int8": "float32"},
    "openvino-cpu": {"float32": "float32", "float16": "fastest", "int8": "fastest"},
}
TYPES: tuple[DataType, ...] = ("int8", "float16", "float32")
ASSUMED = "an assumption: nothing here measures power"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Timed:
    """A cell and the seconds that it took."""

    cell: Cell
    seconds: float


def calibrate(progress: Progress = lambda text: None, passes: int = PASSES) -> Profile:
    """The running machine as the profile `host`; a pass takes a minute or two.

    Raises MissingPackageError where there is no engine.
    """
    asked = {
        (target, data_type): _Chains(target, data_type, compute)
        for target, variants in VARIANTS.items() if _is_installed(target)
        for data_type, compute in variants.items()
    }  # fmt: skip
    if not asked:
        raise MissingPackageError("onnxruntime", "onnxruntime", "calibrating")
    for number in range(passes):
        for (target, data_type), chains in asked.items():
            progress(f"{target}, {data_type}, pass {number + 1} of {passes}")
            chains.time_all()
    measured: dict[str, dict[DataType, tuple[Point, ...]]] = {}
    for (target, data_type), chains in asked.items():
        measured.setdefault(target, {})[data_type] = _points(chains)
    return host_profile(measured)


def host_profile(measured: Mapping[str, dict[DataType, tuple[Point, ...]]]) -> Profile:
    """The profile that timed layers make: peaks are the best that any of them reached."""
    peaks: dict[DataType, Figure] = {}
    for data_type in TYPES:
        rates = [
            2 * point.rows * point.columns * point.depth / point.seconds
            for table in measured.values()
            for point in table.get(data_type, ())
            if point.kind in ("conv", "linear")
        ]
        if rates:
            peaks[data_type] = _measured(max(rates) / 1e12, "the fastest timed layer")
    model, _ = cpu()
    cores = os.cpu_count() or 1
    return Profile(
        name=HOST,
        description=f"{model}, {cores} cores, measured",
        kind="simd",
        peak_tops=peaks,
        clock_mhz=Figure(_clock_mhz(), "the system", "read"),
        bandwidth_gb_per_s=_bandwidth(measured),
        on_chip_mb=Figure(_cache_bytes() / 1e6, "the caches of the last level but one, as the system tells", "read"),
        power_watts=Figure(10.0 * cores, ASSUMED, "unverified"),
        idle_watts=Figure(2.0 * cores, ASSUMED, "unverified"),
        process_nm=Figure(7, ASSUMED, "unverified"),
        memory="DDR5",
        float_bits=32,
        measured=dict(measured),
    )


def _bandwidth(measured: Mapping[str, dict[DataType, tuple[Point, ...]]]) -> Figure:
    """What sums of large tensors move, in the engine in which they move the least.

    An engine that makes one pass of a chain of sums moves nothing between them, and seems quicker than any memory.
    """
    rates = []
    for table in measured.values():
        sums = [point for point in table.get("float32", ()) if point.kind == "Add" and point.rows > LARGE_ROWS]
        if told := [3 * 4 * point.rows / point.seconds for point in sums if point.seconds > LEAST_SECONDS]:
            rates.append(max(told))
    if not rates:
        return Figure(ASSUMED_GB_PER_S, "an assumption: no engine here tells it", "unverified")
    return _measured(min(rates) / 1e9, "sums of large tensors; caches may hold them")


def _measured(value: float, source: str) -> Figure:
    return Figure(float(value), source, "measured")


def _is_installed(target: str) -> bool:
    try:
        return bool(BACKENDS[target].version())
    except OutzoomError:
        return False


class _Chains:
    """The chains that are timed in an engine with weights of a type, and the shortest time of each in each pass."""

    def __init__(self, target: str, data_type: DataType, compute: str) -> None:
        self.target, self.data_type, self.compute = target, data_type, compute
        # Layers without a product have no integers: those of floats count.
        kept = BEFORE_CONVOLUTIONS if data_type == "int8" else None
        self.cells = tuple(one for one in cells() if one.is_product or kept is None or one.kind in kept)
        self.seconds: dict[tuple[Cell, int], list[float]] = {}

    def time_all(self) -> None:
        """One pass."""
        for cell, length in [*((cell, length) for cell in self.cells for length in (SHORT, LONG)), (ALMOST_NOTHING, 1)]:
            stored = self.data_type if cell.is_product else "float32"
            self.seconds.setdefault((cell, length), []).append(self._chain_seconds(cell, length, stored))

    def _chain_seconds(self, cell: Cell, length: int, stored: str) -> float:
        backend = backend_for(self.target)
        # ONNX Runtime computes a convolution in integers only where it makes them.
        rounds_results = self.target == "onnxruntime" and stored == "int8"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            feeds = write_chain(file, cell, length, stored, rounds_results)
            engine = backend.load(backend.compile(file, Path(folder) / "engine"), Loading(self.compute))
            try:
                return fastest_seconds(engine, feeds)
            finally:
                engine.close()

    def each(self) -> list[Timed]:
        """What every cell takes: what a longer chain takes more, for each cell more, in the median of the passes."""
        return [Timed(cell, max(self._more_seconds(cell), LEAST_SECONDS)) for cell in self.cells]

    def _more_seconds(self, cell: Cell) -> float:
        chains = zip(self.seconds[cell, LONG], self.seconds[cell, SHORT], strict=True)  # each pair moments apart
        return median((long - short) / (LONG - SHORT) for long, short in chains)

    @property
    def call_seconds(self) -> float:
        """What calling an engine takes that does almost nothing."""
        return max(median(self.seconds[ALMOST_NOTHING, 1]), LEAST_SECONDS)


def _points(chains: _Chains) -> tuple[Point, ...]:
    """Timed layers, and what a call costs."""
    timed = chains.each()
    swish, norms = ([one for one in timed if one.cell.kind == kind] for kind in BEFORE_CONVOLUTIONS)
    if chains.data_type == "int8":
        timed = [one for one in timed if one.cell.is_product]
    points = [Point(CALL, 1, 1, 1, 1, chains.call_seconds)]
    for one in timed:
        cell, seconds = one.cell, one.seconds
        if cell.kind == "conv":
            elements = int(np.prod(cell.shape))
            before = _interpolated(swish, elements) + _interpolated(norms, elements)
            seconds = max(seconds - before, 0.1 * seconds)
        points.append(Point(cell.kind, cell.rows, cell.columns, cell.depth, cell.kernel, max(seconds, LEAST_SECONDS)))
        alias = {"LayerNormalization": "normalization", "Add": "elementwise", "Transpose": "move"}.get(cell.kind)
        if alias:
            points.append(Point(alias, cell.rows, 1, 1, 1, max(seconds, LEAST_SECONDS)))
    return tuple(points)


def _interpolated(timed: list[Timed], elements: int) -> float:
    sizes = np.log([float(one.cell.rows) for one in timed])
    seconds = np.log([max(one.seconds, LEAST_SECONDS) for one in timed])
    return float(np.exp(np.interp(np.log(elements), sizes, seconds)))


def fastest_seconds(engine: Engine, feeds: Mapping[str, Any], budget_seconds: float = BUDGET_SECONDS) -> float:
    """The shortest of many runs, after two that are not counted: what other processes take only makes runs longer.

    Runs in which the system took a core away count only if there are no others, after ten budgets of trying.
    """
    for _ in range(2):
        engine.run(feeds)
    undisturbed: list[float] = []
    disturbed: list[float] = []
    spent = 0.0
    while not _is_enough(len(undisturbed), spent, budget_seconds):
        before = involuntary_switches()
        started = time.perf_counter()
        engine.run(feeds)
        taken = time.perf_counter() - started
        (undisturbed if involuntary_switches() == before else disturbed).append(taken)
        spent += taken
    return min(undisturbed or disturbed)


def _is_enough(undisturbed: int, spent: float, budget_seconds: float) -> bool:
    if undisturbed >= MIN_RUNS:
        return spent >= budget_seconds or undisturbed >= MAX_RUNS
    return spent >= PATIENCE * budget_seconds


def involuntary_switches() -> int:
    """How often the system took a core away from this process so far; 0 where it does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _clock_mhz() -> float:
    text = read_text("/proc/cpuinfo")
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.lower().startswith("cpu mhz")]
    try:
        return float(found[0])
    except (IndexError, ValueError):
        return 1000.0


def _cache_bytes() -> float:
    """Of all cores' second-level caches, 1 MB each where the system does not tell."""
    total = 0.0
    for core in Path("/sys/devices/system/cpu").glob("cpu[0-9]*"):
        size = read_text(str(core / "cache" / "index2" / "size"))
        total += float(size[:-1]) * 1024 if size.endswith("K") and size[:-1].isdigit() else 2**20
    return total or 2.0**20
