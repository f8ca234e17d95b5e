"""Measuring in fresh processes: start one, hear its progress, take its result, and never leave it behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec

from ..runtime.errors import OutzoomError, UserError
from .results import BundleResult, Latency, RuntimeImport
from .settings import BenchSettings, from_json, to_json

IMPORT_RUNS = 7
POLL_SECONDS = 0.05
SAID_CHARACTERS = 3000  # of what a failed command said


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A stage begins."""

    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The result, and the end."""

    result: BundleResult


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An error that the user can do something about, and the end."""

    message: str
    hint: str
    exit_code: int


Message = Progress | Done | Failed  # one JSON object a line, on the measuring process's standard output


def measure_bundle(
    bundle: Path,
    settings: BenchSettings,
    work: Path,
    on_progress: Callable[[str], None] = lambda text: None,
) -> BundleResult:
    """Measure one bundle in a fresh process, which leaves its pictures in the folder `work`, uint8 RGB.

    `keyframes.npy` and `strip.npy` are of shape (pictures, height, width, 3): the given picture and each painted
    keyframe that was shown, and frames spread evenly over the zoom; `film.raw` has all frames. Raises what the process
    raised; when interrupted, the process ends before this returns.
    """
    command = [sys.executable, "-m", "outzoom.benchmarks.measure", str(bundle), "--work", str(work)]
    command += ["--settings", to_json(settings).decode(), "--spawned-at", repr(time.monotonic())]
    with (
        (work / "stderr.txt").open("w+b") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=child_env()
        ) as process,
    ):
        try:
            last = _listen(process, on_progress)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if isinstance(last, Done) and code == 0:
            return last.result
        if isinstance(last, Failed):
            raise (UserError if last.exit_code == UserError.exit_code else OutzoomError)(last.message, last.hint)
        raise _died(bundle, code, log)


def measure_runtime_import(runs: int = IMPORT_RUNS) -> RuntimeImport:
    """Time and memory of `import outzoom.runtime`, each run in a bare interpreter, the first one not counted."""
    script = (
        "import time\n"
        "try:\n"  # where there is no /proc, psutil's own modules do not count
        "    from os import sysconf\n"
        "    pages = lambda: int(open('/proc/self/statm').read().split()[1]) * sysconf('SC_PAGE_SIZE')\n"
        "    pages()\n"
        "except (ImportError, OSError):\n"
        "    import psutil\n"
        "    pages = lambda: psutil.Process().memory_info().rss\n"
        "before, start = pages(), time.perf_counter()\n"
        "import outzoom.runtime\n"
        "print((time.perf_counter() - start) * 1e3, pages() - before)\n"
    )
    times_ms, growths_bytes = [], []
    for _ in range(1 + runs):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=child_env())
        if done.returncode != 0:
            raise OutzoomError(
                f"a fresh Python can't import outzoom.runtime: {_last_line(done.stderr)}",
                hint=f"install outzoom into the environment of {sys.executable}",
            )
        time_ms, growth_bytes = done.stdout.split()
        times_ms.append(float(time_ms))
        growths_bytes.append(int(growth_bytes))
    return RuntimeImport(Latency.of(times_ms[1:]), sorted(growths_bytes[1:])[runs // 2])


def run_measured(
    command: list[str], output: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a command: its wall time, and the most memory that it or one of its children had at a time.

    What it prints goes into `output`. Raises OutzoomError with its cost and the end of what it said when it fails; when
    interrupted, the command ends before this returns.
    """
    started = time.monotonic()
    with TemporaryFile() as log:
        printed = subprocess.DEVNULL if output is None else output
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=log, env=env) as process:
            try:
                peaks = _watch(process)
            except BaseException:
                process.kill()
                raise
        seconds = time.monotonic() - started
        log.seek(0)
        said = log.read().decode(errors="replace")[-SAID_CHARACTERS:]
    if process.returncode:
        cost = f"{seconds:.0f} s, with a peak of {max(peaks.values()) / 2**30:.1f} GiB"
        raise OutzoomError(f"exit code {process.returncode} after {cost}: {shlex.join(command)}\n{said}")
    return {
        "command": shlex.join([Path(command[0]).name, *command[1:]]),
        "wall_seconds": round(seconds, 1),
        "peak_rss_bytes_of_any_process": max(peaks.values()),
    }


def _watch(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """The most memory of a process and of each of its children, by their numbers, when it has ended."""
    import psutil

    peaks = {process.pid: 0}
    while process.poll() is None:
        with suppress(psutil.Error):  # one of them has just ended
            watched = psutil.Process(process.pid)
            for each in (watched, *watched.children(recursive=True)):
                peaks[each.pid] = max(peaks.get(each.pid, 0), each.memory_info().rss)
        time.sleep(POLL_SECONDS)
    return peaks


def child_env() -> dict[str, str]:
    """This environment, with no module taken from the current folder (Python 3.11 and up heed it)."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def _listen(process: subprocess.Popen[bytes], on_progress: Callable[[str], None]) -> Message | None:
    """The last message; None when there was none that ends the measurement."""
    last: Message | None = None
    for line in process.stdout or ():
        last = from_json(line, Message)
        if isinstance(last, Progress):
            on_progress(last.text)
    return last


def _died(bundle: Path, code: int, log: IO[bytes]) -> OutzoomError:
    log.seek(0)
    if code < 0:
        hint = "out of memory, most likely: measure on a machine with more of it" if code == -9 else ""
        return OutzoomError(f"the process that measured '{bundle}' was killed by signal {-code}", hint)
    said = _last_line(log.read().decode("utf-8", "replace"))
    return OutzoomError(f"measuring '{bundle}' failed: {said or f'exit code {code}'}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
