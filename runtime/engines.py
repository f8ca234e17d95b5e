"""The engines that are open: within a limit of memory, if there is one, those that are needed next stay."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .backends import Engine
from .bundle import Bundle
from .files import atomic_directory
from .machine import rss_bytes
from .packed import open_packed, unpack_beside, unpacked
from .segments import SEGMENTS_NAME, Segment, read_segments

EngineKey = tuple[str, int, str]  # component, batch, and the segment if it is one
WEIGHTS_FOLDER = "weights"  # in the cache of an engine
EXPANSION = 2.2  # an engine before it was opened once is taken to need so many times the size of its files


@dataclass(frozen=True)
class EngineFiles:
    """An engine, and its packed weights if they are not beside it."""

    engine: Path
    packed: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Both, or the one that there is."""
        return (self.engine,) if self.packed is None else (self.engine, self.packed)

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

    @property
    def size_bytes(self) -> int:
        """Of the engine and its weights, as they are when they are loaded."""
        unpacked_bytes = 0 if self.packed is None else open_packed(self.packed).packing.size_bytes
        beside = (file for file in self.engine.parent.iterdir() if file != self.packed)
        return unpacked_bytes + sum(file.stat().st_size for file in beside)


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

    `open_engine` opens one, `size_bytes` says how large its files are. Where the system does not say how much memory is
    in use, a limit means one engine at a time.
    """

    open_engine: Callable[[EngineKey], Engine]
    size_bytes: Callable[[EngineKey], int]
    limit_bytes: int | None = None
    _open: dict[EngineKey, Engine] = field(default_factory=dict)  # the one used last comes last
    _took_bytes: dict[EngineKey, int] = field(default_factory=dict)

    def get(self, key: EngineKey) -> Engine:
        """The engine, opened now or before."""
        if key in self._open:
            self._open[key] = self._open.pop(key)
            return self._open[key]
        if self.limit_bytes is not None:
            self._make_room(key, self.limit_bytes)
        before = rss_bytes()
        self._open[key] = self.open_engine(key)
        after = rss_bytes()
        if before is not None and after is not None:
            self._took_bytes[key] = max(after - before, self._took_bytes.get(key, 0))
        return self._open[key]

    @property
    def names(self) -> list[EngineKey]:
        """Those that are open."""
        return list(self._open)

    def close(self, keep: Callable[[EngineKey], bool] = lambda key: False) -> None:
        """Close the engines but those to keep; they are opened again when they are asked for."""
        for key in [key for key in self._open if not keep(key)]:
            self._open.pop(key).close()
        _give_back()

    def _make_room(self, key: EngineKey, limit_bytes: int) -> None:
        """Close what is needed latest until the engine fits: other components, those used longest ago first; then the
        component's other segments, the one used last first, for they are used in a circle."""
        needed = self._took_bytes.get(key, round(EXPANSION * self.size_bytes(key)))
        others = [one for one in self._open if one[0] != key[0]]
        for one in others + [one for one in reversed(self._open) if one[0] == key[0]]:
            used = rss_bytes()
            if used is not None and used + needed <= limit_bytes:
                return
            self._open.pop(one).close()
            _give_back()


def _give_back() -> None:
    """Ask the allocator to return to the system what was freed, where it can be asked."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # not glibc
            return
