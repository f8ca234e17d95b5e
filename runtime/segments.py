"""An engine in segments: engines that run one after another, and need not be open at the same time.

Where a component's engine is a file called SEGMENTS_NAME, that file lists them; each may have packed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .backends import Array, Engine
from .errors import BundleError

SEGMENTS_NAME = "segments.json"
MAX_SEGMENTS = 256
MAX_BYTES = 2**20


class Segment(msgspec.Struct, frozen=True):
    """One of them: its file, beside the list; the tensors it takes, and those to keep when it has run."""

    engine: str
    inputs: tuple[str, ...]
    kept: tuple[str, ...]
    packed: str | None = None


@dataclass(frozen=True)
class SegmentedEngine:
    """Runs segments in turn; `opened` opens the engine of one for as long as it runs, or longer."""

    segments: Sequence[Segment]
    opened: Callable[[Segment], AbstractContextManager[Engine]]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name."""
        return self.run_each([feeds])[0]

    def run_each(self, several: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Compute the outputs of each of several feeds; all of them pass a segment before the next is opened."""
        values = [dict(feeds) for feeds in several]
        for segment in self.segments:
            with self.opened(segment) as engine:
                for one in values:
                    one |= engine.run({name: one[name] for name in segment.inputs})
            values = [{name: value for name, value in one.items() if name in segment.kept} for one in values]
        return values

    def rest(self) -> None:
        """Whoever opens the segments lets them rest."""

    def close(self) -> None:
        """Whoever opens the segments closes them."""


def read_segments(file: Path) -> tuple[Segment, ...]:
    """The segments that a file lists; raises BundleError when it is damaged."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise msgspec.ValidationError(f"it has more than {MAX_BYTES} bytes")
        segments = msgspec.json.decode(file.read_bytes(), type=tuple[Segment, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"the list of segments '{file}' is damaged: {error}", hint="copy the bundle again") from error
    if not 1 <= len(segments) <= MAX_SEGMENTS:
        raise BundleError(f"'{file}' lists {len(segments)} segments, not 1 to {MAX_SEGMENTS}", hint="build it again")
    return segments
