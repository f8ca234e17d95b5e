"""What the benchmark runs on: without it, a number means nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from ..runtime.machine import cpu, read_text
from ..runtime.sensors import temperature_celsius
from .results import Machine

PACKAGES = ("outzoom", "numpy", "pillow", "tokenizers", "onnxruntime", "openvino", "scikit-image")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BUSY_LOAD_PER_CORE = 0.5


def describe_machine() -> Machine:
    """The machine and its state now; call it before the benchmark loads the machine itself."""
    import psutil

    memory = psutil.virtual_memory()
    load = round(float(psutil.getloadavg()[0]), 2)
    usable_cores = _usable_cores()
    model, flags = cpu()
    return Machine(
        cpu_model=model,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        usable_cores=usable_cores,
        cpu_flags=flags,
        governor=read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        load_average_1min=load,
        nice=os.nice(0) if sys.platform != "win32" else None,
        os=platform.platform(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=_versions(),
        environment={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        warning=busy_warning(load, usable_cores),
        clock_mhz=_clock_mhz(),
        temperature_celsius=temperature_celsius(),
    )


def busy_warning(load: float, cores: int) -> str | None:
    """A sentence when the load average says that the machine was busy before the benchmark began."""
    if load <= BUSY_LOAD_PER_CORE * cores:
        return None
    return (
        f"The machine was busy when the benchmark began: load average {load:.2f} on {cores} cores. "
        "Timings are too long and their ratios unreliable."
    )


def _clock_mhz() -> float | None:
    """Of the cores in the mean, now."""
    import psutil

    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):  # some systems do not tell
        return None
    return round(float(found.current), 1) if found and found.current else None


def _usable_cores() -> int:
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
