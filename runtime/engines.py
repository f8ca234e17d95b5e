"""The engines that are open: within a limit of memory, if there is one, those that are needed next stay."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .backends import Engine
from .bundle import Bundle
from .files import atomic_directory
from .machine import rss_bytes
from .packed import unpack_beside, unpacked
from .segments import SEGMENTS_NAME, Segment, read_segments

EngineKey = tuple[str, int, str]  # component, batch, and the segment if it is one
WEIGHTS_FOLDER = "weights"  # in the cache of an engine


@dataclass(frozen=True)
class EngineFiles:
    """An engine, and its packed weights if they are not beside it."""

    engine: Path
    packed: Path | None

    def complete(self, cache: Path | None = None) -> AbstractContextManager[Path]:
        """The engine beside all of its weights, for as long as it takes to load it, or kept in a cache."""
        if self.packed is None:
            return nullcontext(self.engine)
        if cache is None:
            return unpacked(self.engine, self.packed)
        kept = cache / WEIGHTS_FOLDER / self.engine.name
        if not kept.exists():
            with atomic_directory(kept.parent) as partial:
                unpack_beside(self.engine, self.packed, partial)
        return nullcontext(kept)


def segments_of(bundle: Bundle, component: str) -> tuple[Segment, ...]:
    """Those of a component; none if its engine is whole. Raises BundleError for a damaged list."""
    engine = bundle.engine(component)
    return read_segments(engine) if engine.name == SEGMENTS_NAME else ()


def engine_files(bundle: Bundle, component: str, segment: Segment | None = None) -> EngineFiles:
    """The files of a component's engine, or of one of its segments; raises BundleError for one that is not listed."""
    described = bundle.manifest.components[component]
    names = [described.engine, described.packed]
    if segment is not None:
        folder = PurePosixPath(described.engine).parent
        names = [f"{folder}/{name}" if name else None for name in (segment.engine, segment.packed)]
    engine, packed = names
    assert engine is not None
    return EngineFiles(bundle.file(engine), None if packed is None else bundle.file(packed))


@dataclass
class EnginePool:
    """Opens engines when they are asked for, and closes others first where the limit asks for it.

    What an engine needs is known once it has run; until then it has the memory to itself. So has every engine where the
    system does not say how much is in use.
    """

    open_engine: Callable[[EngineKey], Engine]
    limit_bytes: int | None = None
    _open: dict[EngineKey, Engine] = field(default_factory=dict)  # the one used last comes last
    _took_bytes: dict[EngineKey, int] = field(default_factory=dict)  # to open it and to run it
    _before: tuple[EngineKey, int] | None = None  # the engine opened last, and what was in use before

    def get(self, key: EngineKey) -> Engine:
        """The engine, opened now or before."""
        if key in self._open:
            self._open[key] = self._open.pop(key)
            return self._open[key]
        self._learn()
        if self.limit_bytes is not None:
            self._make_room(key, self.limit_bytes)
        used_bytes = rss_bytes()
        self._open[key] = self.open_engine(key)
        self._before = None if used_bytes is None else (key, used_bytes)
        return self._open[key]

    @property
    def names(self) -> list[EngineKey]:
        """Those that are open."""
        return list(self._open)

    def rest(self) -> None:
        """Give back what the open engines work in, for others are needed next."""
        for engine in self._open.values():
            engine.rest()

    def close(self, keep: Callable[[EngineKey], bool] = lambda key: False) -> None:
        """Close the engines but those to keep; they are opened again when they are asked for."""
        self._learn()
        self._close([key for key in self._open if not keep(key)])

    def _learn(self) -> None:
        """What the engine that was opened last has taken until now."""
        used_bytes = rss_bytes()
        if self._before is not None and used_bytes is not None:
            key, before_bytes = self._before
            self._took_bytes[key] = max(used_bytes - before_bytes, self._took_bytes.get(key, 0))
            self._before = None

    def _make_room(self, key: EngineKey, limit_bytes: int) -> None:
        """Close what is needed latest until the engine fits.

        Other components first, those used longest ago before the rest; then the component's other segments, the one
        used last before the rest, for they are used in a circle.
        """
        others = [one for one in self._open if one[0] != key[0]]
        for one in others + [one for one in reversed(self._open) if one[0] == key[0]]:
            used_bytes, needed_bytes = rss_bytes(), self._took_bytes.get(key)
            if used_bytes is not None and needed_bytes is not None and used_bytes + needed_bytes <= limit_bytes:
                return
            self._close([one])

    def _close(self, keys: Iterable[EngineKey]) -> None:
        closing = [self._open.pop(key) for key in list(keys)]
        for engine in closing:
            engine.close()
        if closing:
            _give_back()


def _give_back() -> None:
    """Ask the allocator to return to the system what was freed, where it can be asked."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # not glibc
            return
