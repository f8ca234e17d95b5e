"""Engines of one component, each in a process of its own: what they make of the same feeds, and how long it takes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ..runtime.backends import Array, Loading, backend_for
from ..runtime.errors import OutzoomError
from ..runtime.machine import peak_rss_bytes
from ..runtime.packed import unpacked

WARM_UPS = 2


@dataclass(frozen=True)
class EngineFile:
    """An engine of one output, of static shapes, and how it is loaded."""

    target: str
    path: Path
    compute: str  # "float32" or "fastest"
    packed: Path | None = None  # its weights, where they are not beside it


@dataclass(frozen=True)
class Run:
    """One run in an engine's process."""

    output: Array
    milliseconds: float
    peak_rss_bytes: int  # of the process so far


class EngineProcess:
    """A process that has an engine loaded, and waits."""

    def __init__(self, engine: EngineFile) -> None:
        """Load it; raises OutzoomError with what its package says when it can't be."""
        context = multiprocessing.get_context("spawn")
        self.engine = engine
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(engine, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Path) -> Run:
        """Run it on the inputs in an .npz file; raises OutzoomError with what its package says when it fails."""
        self._pipe.send(feeds)
        answer = self._answer()
        assert isinstance(answer, Run)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def _answer(self) -> Run | None:
        try:
            answer: Run | str | None = self._pipe.recv()
        except EOFError:
            self._process.join()
            answer = f"its process ended with exit code {self._process.exitcode}"
        if isinstance(answer, str):
            raise OutzoomError(f"the engine '{self.engine.path}' does not run: {answer}")
        return answer


@contextmanager
def loaded(engine: EngineFile) -> Iterator[EngineProcess]:
    """The engine in its process, which ends with the context."""
    process = EngineProcess(engine)
    try:
        yield process
    finally:
        process.close()


def outputs(engine: EngineFile, feeds: Sequence[Path]) -> list[Run]:
    """What an engine makes of each of the feeds."""
    with loaded(engine) as process:
        return [process.run(file) for file in feeds]


def time_in_turn(engines: Mapping[str, EngineFile], feeds: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a run of each engine in each round; all are loaded, and each round begins with another one."""
    names = list(engines)
    samples_ms: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(loaded(engine)) for name, engine in engines.items()}
        for number in range(WARM_UPS + rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                taken_ms = processes[name].run(feeds).milliseconds
                if number >= WARM_UPS:
                    samples_ms[name].append(taken_ms)
    return samples_ms


def _serve(engine: EngineFile, pipe: Connection) -> None:
    """The body of the process: answer each file of feeds with a run, or say why there is none."""
    try:
        packed = nullcontext(engine.path) if engine.packed is None else unpacked(engine.path, engine.packed)
        with packed as file:
            loaded = backend_for(engine.target).load(file, Loading(engine.compute))
        pipe.send(None)
        while True:
            with np.load(pipe.recv(), allow_pickle=False) as stored:
                feeds = dict(stored)
            started = time.perf_counter()
            made = loaded.run(feeds)
            milliseconds = (time.perf_counter() - started) * 1e3
            (output,) = made.values()
            pipe.send(Run(output, milliseconds, peak_rss_bytes()))
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
