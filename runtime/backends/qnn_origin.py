"""What a context binary of Qualcomm's HTP belongs to: a system on chip, and a version of the package that made it.

Both are in a small file beside it, which is compared with what is here before QNN is given the binary.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..bundle import REBUILD
from ..errors import BundleError
from ..machine import read_text

PACKAGE = "onnxruntime-qnn"
ORIGIN_NAME = "origin.json"
MAX_ORIGIN_BYTES = 2**12
VARIABLE = "OUTZOOM_SOC"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Soc:
    """A system on chip: its name, what phones call it, its number in QNN, and the version of its HTP."""

    name: str
    sold_as: str
    model: int
    htp_arch: int


SOCS = {
    soc.name: soc
    for soc in (
        Soc("SM8550", "Snapdragon 8 Gen 2", 43, 73),
        Soc("SM8650", "Snapdragon 8 Gen 3", 57, 75),
        Soc("SM8750", "Snapdragon 8 Elite", 69, 79),
    )
}


class Origin(msgspec.Struct, frozen=True):
    """What a context binary was made for, and by which version of the package."""

    soc: str
    version: str


def write_origin(engine: Path, origin: Origin) -> None:
    """Say beside an engine what it was made for."""
    engine.with_name(ORIGIN_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(origin)))


def read_origin(engine: Path) -> Origin:
    """What the file beside an engine says; raises BundleError if there is none, or it is damaged."""
    file = engine.with_name(ORIGIN_NAME)
    try:
        if file.stat().st_size > MAX_ORIGIN_BYTES:
            raise ValueError(f"it has more than {MAX_ORIGIN_BYTES} bytes")
        origin = msgspec.json.decode(file.read_bytes(), type=Origin)
        if not (origin.soc + origin.version).isprintable():
            raise ValueError("it holds characters that can't be printed")
        return origin
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BundleError(f"'{file}' does not say what '{engine.name}' was made for: {error}", hint=REBUILD) from error


def check_origin(engine: Path, soc: str | None, version: str) -> None:
    """Raises BundleError for an engine of another SoC than `soc`, which None, in emulation, is not, or version."""
    origin = read_origin(engine)
    if soc is not None and origin.soc != soc:
        target = f"onnxruntime-qnn-{soc.lower()}" if soc in SOCS else "onnxruntime-qnn, which compiles on the device"
        raise BundleError(
            f"the engine '{engine}' was made for {_shown(origin.soc)}; this is {_shown(soc)}",
            hint=f"build the bundle for {target}; {VARIABLE} names the SoC where the system does not",
        )
    if origin.version != version:
        raise BundleError(
            f"the engine '{engine}' was made by {PACKAGE} {origin.version}; here is {version}",
            hint=f"pip install {PACKAGE}=={origin.version}, or build the bundle again with {version}",
        )


def device_soc() -> str | None:
    """The SoC of this device, such as SM8650; None where it is emulated. OUTZOOM_SOC names it if the system can't."""
    if named := os.environ.get(VARIABLE):
        return named.upper()
    if platform.machine().lower() in ("x86_64", "amd64"):
        return None
    found = _property("ro.soc.model") or read_text("/sys/devices/soc0/machine")
    name = re.match(r"[A-Z]+\d+", found.upper())
    return name[0] if name else UNKNOWN


def _property(name: str) -> str:
    """A property of Android, empty elsewhere."""
    getprop = shutil.which("getprop")
    if getprop is None:
        return ""
    return subprocess.run([getprop, name], capture_output=True, text=True, timeout=10).stdout.strip()


def _shown(soc: str) -> str:
    return f"{soc} ({SOCS[soc].sold_as})" if soc in SOCS else f"'{soc}'"
