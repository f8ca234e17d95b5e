"""How a zoom's colours and detail drift over many keyframes, each painted around the one before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from ..runtime import Painting, Zoom, load_image, open_bundle
from ..runtime.geometry import outside_mask
from .quality import Picture
from .scripts import write_json
from .settings import BenchSettings
from .temporal import Drift, Statistics, drift, statistics

SCALE = 0.8
WINDOW = 10


class DriftResult(msgspec.Struct, frozen=True):
    """What is painted anew in each keyframe, and how the last WINDOW of them differ from the first."""

    prompt: str
    scale: float
    window: int
    given: Statistics  # of the picture that the zoom began with
    painted: tuple[Statistics, ...]
    drift: Drift


def measure_drift(
    zoom: Zoom,
    picture: Picture,
    prompt: str,
    painting: Painting,
    keyframes: int = 50,
    on_progress: Callable[[str], None] = lambda text: None,
) -> DriftResult:
    """Zoom out of a picture (height, width, 3) of the zoom's size; raises ValueError for under two windows."""
    border, painted = outside_mask(zoom.size, SCALE), []
    made = zoom.keyframes(picture, prompt, SCALE, painting)
    next(made)  # the picture itself
    for number in range(1, keyframes + 1):
        on_progress(f"drift: keyframe {number} of {keyframes}")
        painted.append(statistics(next(made), border))
    given = statistics(picture, np.ones_like(border))
    return DriftResult(prompt, SCALE, WINDOW, given, tuple(painted), drift(painted, WINDOW))


def _named(on_progress: Callable[[str], None], name: str, text: str) -> None:
    on_progress(f"{name}: {text}")


def bench_drift(
    bundles: dict[str, Path],
    out: Path,
    settings: BenchSettings,
    keyframes: int,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, DriftResult]:
    """Measure each bundle on the settings' picture; write OUT/drift.json."""
    results = {}
    for name, path in bundles.items():
        with open_bundle(path) as zoom:
            results[name] = measure_drift(
                zoom, load_image(settings.picture, zoom.size), settings.prompt, settings.painting, keyframes,
                partial(_named, on_progress, name),
            )  # fmt: skip
    write_json(results, out / "drift.json")
    return results
