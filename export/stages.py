"""The build as a graph of stages: each is keyed by what goes into it, and runs in a process of its own.

A stage's result is a folder in the cache, named by its key: a hash over what it is made of and over the keys of the
stages that it needs. A result that is there is never made again, so an interrupted build goes on where it stopped.
A process of its own gives its memory back when it is done, and tells how much it took.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.errors import MissingPackageError, OutzoomError
from ..runtime.files import atomic_directory
from ..runtime.machine import peak_rss_bytes

RECORD = "stage.json"
KEY_DIGITS = 16
Work = Callable[..., None]  # work(folder, *folders of the needed stages, **arguments) writes into `folder`


class Record(msgspec.Struct, frozen=True):
    """What a finished stage leaves beside its result."""

    name: str
    key: str
    seconds: float
    cpu_seconds: float  # of all cores, which other work does not make longer
    peak_memory_bytes: int
    finished: str  # UTC, ISO 8601


@dataclass(frozen=True, eq=False)
class Stage:
    """A step of the build. `identity` (JSON-able) is all that its result depends on; `arguments` are for `work`."""

    name: str  # as people read it
    work: Work  # a function of a module, so that another process can import it
    identity: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Stage, ...] = ()

    @cached_property
    def key(self) -> str:
        """The hash that names the result."""
        parts = [self.name, self.work.__name__, dict(self.identity), [stage.key for stage in self.needs]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]

    def folder(self, cache: Path) -> Path:
        """Where its result is, or will be."""
        return cache / f"{self.work.__name__}-{self.key}"

    def record(self, cache: Path) -> Record | None:
        """The record of its finished result; None when it has to be made."""
        try:
            record = msgspec.json.decode((self.folder(cache) / RECORD).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.key == self.key else None


@dataclass(frozen=True)
class Event:
    """A stage begins, is done, or is skipped because its result is there."""

    kind: str  # "start", "done" or "skip"
    stage: Stage
    record: Record | None = None


def missing(stage: Stage, cache: Path) -> Iterator[Stage]:
    """The stages that have to run for `stage`, the needed first; what only finished stages need is left alone."""
    if stage.record(cache) is None:
        for need in stage.needs:
            yield from missing(need, cache)
        yield stage


def run(wanted: list[Stage], cache: Path, jobs: int, on_event: Callable[[Event], None]) -> None:
    """Make the results of the wanted stages and of all that they need, `jobs` at a time.

    Raises what a stage raised; then, and when interrupted, the other stages are ended and nothing half-made stays.
    """
    by_key = {stage.key: stage for target in wanted for stage in missing(target, cache)}
    skipped = {need.key: need for stage in (*by_key.values(), *wanted) for need in (stage, *stage.needs)}
    for stage in skipped.values():
        if stage.key not in by_key:
            on_event(Event("skip", stage, stage.record(cache)))
    order = TopologicalSorter({key: {n.key for n in stage.needs} & set(by_key) for key, stage in by_key.items()})
    order.prepare()
    ready: list[str] = []
    running: dict[str, _Process] = {}
    try:
        while order.is_active():
            ready += order.get_ready()
            while ready and len(running) < jobs:
                stage = by_key[ready.pop(0)]
                on_event(Event("start", stage))
                running[stage.key] = _Process(stage, cache)
            for key in _finished(running):
                running.pop(key).result()
                order.done(key)
                on_event(Event("done", by_key[key], by_key[key].record(cache)))
    finally:
        for process in running.values():
            process.end()


def _finished(running: dict[str, _Process]) -> list[str]:
    ended = wait([process.pipe for process in running.values()])
    return [key for key, process in running.items() if process.pipe in ended]


class _Process:
    """A process that runs one stage."""

    def __init__(self, stage: Stage, cache: Path) -> None:
        self.stage = stage
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        self.process = _context().Process(target=_run_stage, args=(stage, cache, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def result(self) -> None:
        """Wait for the end; raises what the stage raised."""
        try:
            error = self.pipe.recv()
        except EOFError:
            error = None
        self.process.join()
        if error is not None:
            raise error
        if self.process.exitcode:
            raise OutzoomError(
                f"the process of the stage '{self.stage.name}' was ended from outside (exit code "
                f"{self.process.exitcode}), most likely for want of memory",
                hint="fewer --jobs take less memory; what is done so far is kept",
            )

    def end(self) -> None:
        """Stop it, and clear away what it was writing."""
        self.process.terminate()
        self.process.join()


def _context() -> Any:
    """Processes that start from one that has PyTorch loaded, where the system can fork; else from nothing."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.trace", f"{__package__}.parity"])
    return context


def _run_stage(stage: Stage, cache: Path, pipe: Connection) -> None:
    """The body of the process: make the result, whole or not at all, and send the error if there was one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends this process
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        started = time.monotonic()
        with atomic_directory(stage.folder(cache)) as folder:
            stage.work(folder, *(need.folder(cache) for need in stage.needs), **stage.arguments)
            seconds = round(time.monotonic() - started, 2)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            cpu_seconds = round(sum(os.times()[:4]), 2)  # in the program and in the system, its own and its children's
            record = Record(stage.name, stage.key, seconds, cpu_seconds, peak_rss_bytes(), now)
            (folder / RECORD).write_bytes(msgspec.json.encode(record))
        pipe.send(None)
    except Exception as error:
        pipe.send(_sendable(error))


def _stop(*_: object) -> None:
    raise SystemExit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same, as another process can read it."""
    import traceback

    if isinstance(error, (OutzoomError, MemoryError)):
        return error
    if isinstance(error, ImportError):  # installed, as the plan saw, but not whole
        return MissingPackageError(error.name or "torch", "export", "export-all")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError("".join(traceback.format_exception(error)).strip())
