"""What this machine can do: packages by extra, targets, processor, memory and disk."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from . import __version__
from .runtime.backends import BACKENDS
from .runtime.errors import OutzoomError

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16")


def examine() -> dict[str, Any]:
    """The report of `outzoom doctor`, JSON-able; sizes in bytes."""
    return {
        "outzoom": __version__,
        "python": platform.python_version(),
        "packages": _packages(),
        "targets": {name: _state(name) for name in BACKENDS},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "features": [f for f in FEATURES if f in _cpu_info("flags").split() + _cpu_info("Features").split()],
            "memory_bytes": _memory_bytes(),
            "disk_free_bytes": shutil.disk_usage(".").free,
        },
    }


def _packages() -> dict[str, dict[str, str | None]]:
    """Installed versions of what each extra needs, from the package's own metadata."""
    found: dict[str, dict[str, str | None]] = {}
    for line in requires("outzoom") or []:
        requirement, _, marker = line.partition(";")
        extra = marker.partition("extra ==")[2].strip(" '\"") or "base"
        name = requirement.split("[")[0].strip()
        for operator in "<>=!~ ":
            name = name.split(operator)[0]
        if extra in ("all", "dev") or name == "outzoom" or "python_version" in marker:
            continue
        found.setdefault(extra, {})[name] = _version(name)
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _state(target: str) -> str:
    try:
        return f"ready ({BACKENDS[target].version()})"
    except OutzoomError as error:
        return f"{error}; {error.hint}"
    except Exception as error:  # a package that is there but broken raises anything
        return f"broken: {error}"


def _cpu_info(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _processor() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
