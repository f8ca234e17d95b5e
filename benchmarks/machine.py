"""What the benchmark runs on: without it, a number means nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .results import Machine

PACKAGES = ("outzoom", "numpy", "pillow", "tokenizers", "onnxruntime", "openvino", "scikit-image")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
FLAGS = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
BUSY_LOAD_PER_CORE = 0.5


def describe_machine() -> Machine:
    """The machine and its state now; call it before the benchmark loads the machine itself."""
    import psutil

    memory = psutil.virtual_memory()
    load = round(float(psutil.getloadavg()[0]), 2)
    usable_cores = _usable_cores()
    model, flags = _cpu()
    return Machine(
        cpu_model=model,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        usable_cores=usable_cores,
        cpu_flags=tuple(flag for flag in FLAGS if flag in flags),
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        load_average_1min=load,
        nice=os.nice(0) if sys.platform != "win32" else None,
        os=platform.platform(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=_versions(),
        environment={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        warning=busy_warning(load, usable_cores),
    )


def busy_warning(load: float, cores: int) -> str | None:
    """A sentence when the load average says that the machine was busy before the benchmark began."""
    if load <= BUSY_LOAD_PER_CORE * cores:
        return None
    return (
        f"The machine was busy when the benchmark began: load average {load:.2f} on {cores} cores. "
        "Timings are too long and their ratios unreliable."
    )


def _usable_cores() -> int:
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))


def _cpu() -> tuple[str, frozenset[str]]:
    """Model name and feature flags, as far as the system tells them."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip(), frozenset()
    rows = (line.partition(":") for line in _text("/proc/cpuinfo").splitlines())
    fields = {name.strip().lower(): value.strip() for name, _, value in reversed(list(rows))}
    board = _text("/proc/device-tree/model").rstrip("\0")  # ARM's cpuinfo names no model
    model = fields.get("model name") or board or platform.processor() or platform.machine()
    return model, frozenset((fields.get("flags") or fields.get("features") or "").split())


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
