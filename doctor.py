"""What this machine can do: packages by extra, targets, processor, memory and disk."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from . import __version__
from .runtime.backends import BACKENDS
from .runtime.errors import OutzoomError
from .runtime.machine import cpu

BUILT = Path(__file__).parent / "benchmarks" / "results" / "targets.json"


def recipes_by_target() -> dict[str, dict[str, dict[str, Any]]]:
    """What became of each recipe for each target when outzoom.benchmarks.targets built them of the demo model.

    `made` is when there are engines, "ahead" or "on device", or "refused", for a `reason`; then the parts, with bytes
    and parity in dB.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in json.loads(BUILT.read_text("utf-8"))["entries"]:
        refused = entry["refused"]
        made = {"made": entry["made"] if refused is None else "refused", "reason": refused}
        found.setdefault(entry["target"], {})[entry["recipe"]] = {**made, "components": entry["components"]}
    return found


def examine() -> dict[str, Any]:
    """The report of `outzoom doctor`, JSON-able; sizes in bytes."""
    processor, features = cpu()
    return {
        "outzoom": __version__,
        "python": platform.python_version(),
        "packages": _packages(),
        "targets": {name: _state(name) for name in BACKENDS},
        "machine": {
            "processor": processor,
            "cores": os.cpu_count(),
            "features": list(features),
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
        if extra in ("all", "dev") or name == "outzoom" or "python_version" in marker or "sys_platform" in marker:
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
        version, absent = BACKENDS[target].version(), BACKENDS[target].absent()
        return f"ready ({version})" if absent is None else f"builds ({version}), does not run: {absent}"
    except OutzoomError as error:
        return f"{error}; {error.hint}"
    except Exception as error:  # a package that is there but broken raises anything
        return f"broken: {error}"


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
