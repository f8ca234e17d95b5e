"""What processor this is, as far as the system tells."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from .errors import UserError

# Of the many flags, those that matter to inference: vector and matrix units and their small data types.
FLAGS = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def cpu() -> tuple[str, tuple[str, ...]]:
    """The processor's model name, and which of FLAGS it has."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip(), ()
    rows = (line.partition(":") for line in read_text("/proc/cpuinfo").splitlines())
    fields = {name.strip().lower(): value.strip() for name, _, value in reversed(list(rows))}
    board = read_text("/proc/device-tree/model").rstrip("\0")  # ARM's cpuinfo names no model
    model = fields.get("model name") or board or platform.processor() or platform.machine()
    found = (fields.get("flags") or fields.get("features") or "").split()
    return model, tuple(flag for flag in FLAGS if flag in found)


def read_text(path: str) -> str:
    """The contents of a small system file, empty where there is none."""
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""


UNITS = {
    "": 1,
    **{f"{k}B": 1000**n for n, k in enumerate("kMGT", 1)},
    **{f"{k}iB": 1024**n for n, k in enumerate("KMGT", 1)},
}


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it, such as 1GiB or 800MB; raises UserError for another text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise UserError(f"'{text}' is no amount of memory", hint="write it like 1GiB, 1.5GB or 800MiB")
    size_bytes: int = round(float(found[1]) * units[found[2].lower()])
    return size_bytes


def rss_bytes() -> int | None:
    """The resident memory that this process has now; None where the system does not tell without more packages."""
    if sys.platform != "linux":
        return None
    pages, page_bytes = int(Path("/proc/self/statm").read_text().split()[1]), int(os.sysconf("SC_PAGE_SIZE"))
    return pages * page_bytes


def forget_mapped(file: Path) -> None:
    """Let the system take back the memory in which a file is mapped; what is read of it again comes from the file.

    Does nothing where the system has no such call, or no way to tell where the file is mapped.
    """
    if sys.platform != "linux":
        return
    name = str(file.resolve())
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for line in Path("/proc/self/maps").read_text("utf-8", errors="surrogateescape").splitlines():
            span, access, *rest = line.split(maxsplit=5)
            if rest[-1] == name and "w" not in access:
                begin, end = (int(number, 16) for number in span.split("-"))
                advise(begin, end - begin, mmap.MADV_DONTNEED)


def peak_rss_bytes() -> int:
    """The most resident memory that this process ever had.

    Linux's getrusage counts the parent's memory from before exec as the process's own, so the kernel's high
    water mark of this very address space is read instead.
    """
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform != "linux":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
