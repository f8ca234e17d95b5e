"""What outzoom.benchmarks.keyframe writes: a keyframe of ours, and of other pipelines, painted in turn."""

from __future__ import annotations

from pathlib import Path

import msgspec

from .scripts import read_json


class SideResult(msgspec.Struct, frozen=True):
    """One that painted: seconds of each picture, and of their ratios to the reference's the median and its spread.

    `packages` are those of another pipeline; ours has none, since it has the machine's.
    """

    keyframe_seconds: tuple[float, ...]
    load_seconds: float
    peak_rss_bytes: int
    ratio: dict[str, float] = {}
    packages: dict[str, str] = {}


class KeyframeResult(msgspec.Struct, frozen=True):
    """The contents of the result file: `sides` by name, painted in turn on one machine; `reference` is one of them.

    `size` is in pixels, width first. Without `steps` each preset of ours has its own, and the others 20.
    """

    command: str
    date: str
    machine: str
    cores: int
    load_before: float
    packages: dict[str, str]
    bundle: str
    checkpoint: str
    size: tuple[int, int]
    guidance: float
    rounds: int
    reference: str | None
    sides: dict[str, SideResult]
    steps: int | None = None


def read_keyframe_result(path: Path) -> KeyframeResult:
    """What outzoom.benchmarks.keyframe wrote; raises UserError for a file that is none."""
    hint = "python -m outzoom.benchmarks.keyframe BUNDLE... --rival NAME PYTHON MODEL --out RESULT.json"
    return read_json(path, KeyframeResult, "is no result of outzoom.benchmarks.keyframe", hint)
