"""Joules of a stretch of work, by the device's own counters, sampled in a thread and integrated over time.

NVIDIA's GPUs (NVML) and Jetson's rails (INA3221) are read through `zeus` (Chung et al. 2024; version 0.16), of which
only `zeus.device` is imported: half a second and 15 MB, where its `ZeusMonitor` imports scikit-learn and pandas. It is
the optional extra `energy`, of 340 MB on disk with what it needs, and not imported where the bundle runs on a CPU.

RAPL and the battery are read here, through `runtime/sensors.py`. zeus has no battery, and its reader of RAPL is unfit
for short stretches: a process of its own looks once a second whether a counter went round, so that a reading in between
comes out a whole range too low; it lists the whole board ("psys") beside the sockets in it; and one unreadable file
ends the reading of all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..runtime.sensors import SYS, battery_watts, rapl_domains, read_number

INTERVAL_SECONDS = 0.1
MAX_DOMAIN_WATTS = 2000.0  # a counter that says more was set back, not round
MAX_GAP_SECONDS = 5.0  # for which a power is taken to have gone from one reading to the next in a straight line
MIN_COVERED = 0.9  # of a stretch; the rest is taken to have used as much power
TEGRA = Path("/etc/nv_tegra_release")


class Step(NamedTuple):
    """Energy since the reading before, and for how much of that time it is known."""

    joules: float
    covered_seconds: float


class Source(Protocol):
    """Something that can be read again and again; `resolution_seconds` is how often it has something new to say."""

    method: str
    resolution_seconds: float

    def step(self, now: float) -> Step | None:
        """What was used since the last reading that there was, nothing known at the first; None where there is none."""
        ...


@dataclass
class Counters:
    """Counters of joules, which go on counting while nobody reads them; all are read, or none counts."""

    method: str
    read: Callable[[], dict[str, float] | None]
    ranges: dict[str, float] = field(default_factory=dict)  # joules at which a counter begins again at 0
    resolution_seconds: float = 0.001
    _last: tuple[float, dict[str, float]] | None = None

    def step(self, now: float) -> Step | None:
        """The counters' growth, also over a gap; unknown where one was set back."""
        found = self.read()
        if found is None:
            return None
        before, self._last = self._last, (now, found)
        if before is None or found.keys() != before[1].keys():
            return Step(0.0, 0.0)
        elapsed = now - before[0]
        limit = MAX_DOMAIN_WATTS * (elapsed + 2 * self.resolution_seconds)  # two readings may be of one renewal
        grown = [self._grown(name, joules - before[1][name]) for name, joules in found.items()]
        ambiguous = any(name in self.ranges and self.ranges[name] < limit for name in found)  # round more than once?
        if ambiguous or any(not 0 <= joules <= limit for joules in grown):
            return Step(0.0, 0.0)
        return Step(sum(grown), elapsed)

    def _grown(self, name: str, joules: float) -> float:
        return joules + self.ranges.get(name, 0.0) if joules < 0 else joules


@dataclass
class Power:
    """A power in watts, taken to go from one reading to the next in a straight line."""

    method: str
    read: Callable[[], float | None]
    resolution_seconds: float
    _last: tuple[float, float] | None = None

    def step(self, now: float) -> Step | None:
        """Unknown over a gap of more than MAX_GAP_SECONDS."""
        watts = self.read()
        if watts is None:
            return None
        before, self._last = self._last, (now, watts)
        if before is None:
            return Step(0.0, 0.0)
        elapsed = now - before[0]
        return Step((before[1] + watts) / 2 * elapsed, elapsed) if elapsed <= MAX_GAP_SECONDS else Step(0.0, 0.0)


def find_sources(gpu: bool = False, sys: Path = SYS, tegra: Path = TEGRA) -> list[Source]:
    """What there is to read, none of it counted twice; `gpu`: the work runs on an NVIDIA GPU.

    Jetson's rails, or RAPL with the GPU's counter beside it, or the battery, which is the whole machine's. A GPU that
    can't be read leaves RAPL out too: the processor alone would be too little.
    """
    if tegra.exists() and (rails := jetson_source()):
        return [rails]
    graphics = nvml_source() if gpu else None
    processor = rapl_source(sys)
    if gpu and graphics:
        return [processor, graphics] if processor else [graphics]
    if processor and not gpu:
        return [processor]
    return [Power("battery", lambda: battery_watts(sys), 30.0)] if battery_watts(sys) is not None else []


def obstacle(sys: Path = SYS) -> str | None:
    """A sentence where the processor counts its energy, but not for everyone to read."""
    files = sorted((sys / "class/powercap").glob("intel-rapl:*/energy_uj"))
    if not files or any(read_number(file) is not None for file in files):
        return None
    return f"the processor's energy can't be read: {files[0]} and its like are root's alone (sudo chmod a+r them)"


def rapl_source(sys: Path = SYS) -> Counters | None:
    """The processor's counters; None where there are none, or none that may be read."""
    domains = rapl_domains(sys)
    if not domains:
        return None

    def read() -> dict[str, float] | None:
        found = {domain.name: read_number(domain / "energy_uj") for domain in domains}
        known = {name: value / 1e6 for name, value in found.items() if value is not None}
        return known if len(known) == len(found) else None

    ranges = {domain.name: read_number(domain / "max_energy_range_uj") or 0 for domain in domains}
    return Counters("RAPL", read, {name: value / 1e6 for name, value in ranges.items() if value})


def nvml_source() -> Counters | None:
    """The counters of NVIDIA's GPUs of Volta and later, those of CUDA_VISIBLE_DEVICES; None without zeus or a GPU."""
    try:
        from zeus.device import get_gpus
        from zeus.device.gpu.nvidia import nvml_is_available
    except ImportError:
        return None
    gpus = _tried(get_gpus) if _tried(nvml_is_available) else None
    if gpus is None:
        return None
    read = gpu_reader(gpus)
    return Counters("NVML", read, resolution_seconds=0.1) if read() else None


def gpu_reader(gpus: Any) -> Callable[[], dict[str, float] | None]:
    """Reads joules of those of zeus's GPUs that have a counter."""

    def joules() -> dict[str, float]:
        having = [number for number in range(len(gpus)) if gpus.supports_get_total_energy_consumption(number)]
        return {str(number): gpus.get_total_energy_consumption(number) / 1e3 for number in having}

    return lambda: _tried(joules)


def jetson_source() -> Counters | None:
    """The sum of a Jetson's rails: of the whole module where it has such a one, or else of CPU and GPU."""
    try:
        from zeus.device import get_soc
    except ImportError:
        return None
    soc = _tried(get_soc)
    if soc is None:
        return None
    read = rails_reader(soc)
    return Counters("Jetson INA", read, resolution_seconds=0.2) if read() else None


def rails_reader(soc: Any) -> Callable[[], dict[str, float] | None]:
    """Reads joules of zeus's Jetson: it adds up samples that a process of its own takes ten times a second."""

    def read() -> dict[str, float] | None:
        found = _tried(soc.get_total_energy_consumption)
        names = ("total_energy_mj", "cpu_energy_mj", "gpu_energy_mj")
        known = {name: millijoules / 1e3 for name in names if (millijoules := getattr(found, name, None)) is not None}
        whole = {name: joules for name, joules in known.items() if name.startswith("total")}
        return whole or known or None

    return read


def _tried(read: Callable[[], Any]) -> Any:
    """What is read, or None: a device that is lost for a moment must not end a benchmark."""
    try:
        return read()
    except Exception:
        return None


class Stretch(NamedTuple):
    """The energy of a stretch of time; None where too little of it could be read."""

    joules: float | None
    seconds: float


class Recorder:
    """What one source said, as energy added up over time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._rows: list[tuple[float, float, float]] = []  # seconds, joules and covered seconds until then

    def read(self, now: float) -> None:
        """Read the source once."""
        step = self.source.step(now)
        if step is not None:  # what comes after a gap says what was in it
            _, joules, covered = self._rows[-1] if self._rows else (now, 0.0, 0.0)
            self._rows.append((now, joules + step.joules, covered + step.covered_seconds))

    def between(self, start: float, end: float) -> Stretch:
        """The energy from one time to another, both of the clock that `read` was given."""
        if len(self._rows) < 2 or end <= start:
            return Stretch(None, end - start)
        times, joules, covered = np.array(self._rows).T
        used, known = (float(np.diff(np.interp((start, end), times, values))[0]) for values in (joules, covered))
        if known < MIN_COVERED * (end - start):
            return Stretch(None, end - start)
        return Stretch(used * (end - start) / known, end - start)


class EnergyMeter:
    """Reads sources in a thread, between `start` and `stop`; without any it does nothing, and knows nothing."""

    def __init__(
        self,
        sources: list[Source],
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.method = " + ".join(source.method for source in sources)
        self.resolution_seconds = max((source.resolution_seconds for source in sources), default=0.0)
        self.clock = clock
        self._interval_seconds = interval_seconds
        self._recorders = [Recorder(source) for source in sources]
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def __bool__(self) -> bool:
        return bool(self._recorders)

    def start(self) -> None:
        """Begin to read."""
        if self:
            self.read()
            self._thread.start()

    def stop(self) -> None:
        """Read for the last time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
            self.read()

    def read(self) -> float:
        """Read all sources now; when that was, in seconds of the clock."""
        with self._lock:
            now = self.clock()
            for recorder in self._recorders:
                recorder.read(now)
            return now

    def between(self, start: float, end: float) -> Stretch:
        """The energy of all sources from one time to another."""
        with self._lock:
            found = [recorder.between(start, end).joules for recorder in self._recorders]
        known = [joules for joules in found if joules is not None]
        return Stretch(sum(known) if known and len(known) == len(found) else None, end - start)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self.read()
