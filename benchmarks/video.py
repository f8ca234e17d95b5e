"""How good a video's border is against what it costs: painted on every frame, or on 1 in 2, 5, 10.

A wide video is its own truth: its centre goes in, and what is painted around that is compared with what was there.
`outzoom bench BUNDLE --video FILE` measures one; `models/evaluate_video.py` several made ones.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import UserError, VideoReader, open_bundle
from ..runtime.border import BorderRenderer, Layout, Painted, layout_for
from ..runtime.camera import CameraMotion
from ..runtime.errors import printable
from ..runtime.inpainting import Inpainting, Painting
from ..runtime.shapes import Size
from ..runtime.video_zoom import Surround, VideoZoom
from .quality import Mask, Picture, border_psnr_db, border_ssim, seam_ratio
from .scripts import write_json
from .settings import BenchSettings
from .temporal import Flow, backward_flow, flicker_levels, statistics

KEYFRAMES_EVERY = (1, 2, 5, 10)
MIN_FRAMES, MAX_FRAMES = 2, 300
EQUAL_PSNR_DB = 100.0
METHODS = ("look-ahead", "live", "repeated")


@dataclass(frozen=True)
class Clip:
    """Frames of the size that a bundle paints, whose centres are the input, and what to paint around them."""

    name: str
    prompt: str
    frames: Sequence[Picture]


class Score(msgspec.Struct, frozen=True):
    """A clip's border by one method, painted on 1 frame in `keyframe_every`; means over its frames.

    `look-ahead` and `live` are what `VideoZoom` does; `repeated` leaves the last keyframe's border where it is.
    `detail_ratio` is the detail of the border to that of the truth: below 1 it is blurred.
    """

    clip: str
    method: str
    keyframe_every: int
    frame_count: int
    painted_count: int
    border_psnr_db: float  # equal pictures count as EQUAL_PSNR_DB
    border_ssim: float
    seam_ratio: float | None
    flicker_levels: float | None
    flicker_worst_levels: float | None  # of one frame: keyframes that jump
    detail_ratio: float | None


class Truth(msgspec.Struct, frozen=True):
    """The same of the clip itself, with nothing painted."""

    clip: str
    prompt: str
    seam_ratio: float | None
    flicker_levels: float | None
    detail_levels: float


class Cost(msgspec.Struct, frozen=True):
    """What 1 frame in `keyframe_every` costs: mean time of a frame, and how many paintings were saved."""

    keyframe_every: int
    painted_fraction: float
    frame_ms: float
    paint_ms: float
    between_ms: float


class VideoResult(msgspec.Struct, frozen=True):
    """Every score of every clip, and the means of each method over the clips."""

    scale: float
    truths: tuple[Truth, ...]
    scores: tuple[Score, ...]
    costs: tuple[Cost, ...]


class VideoBench(msgspec.Struct, frozen=True):
    """The contents of `video.json`: results by bundle."""

    video: str
    settings: BenchSettings
    bundles: dict[str, VideoResult]


class Painter:
    """Paints with a pipeline, and times it; what it painted before it gives again without painting."""

    def __init__(self, inpainting: Inpainting) -> None:
        self._inpainting = inpainting
        self._made: dict[bytes, Picture] = {}
        self.size: Size = inpainting.size
        self.samples_ms: list[float] = []
        self.count = 0  # of paintings, be they new or known

    def paint(
        self,
        picture: Picture,
        mask: NDArray[np.bool_],
        prompt: str,
        painting: Painting,
        *,
        on_step: Callable[[], None] | None = None,
    ) -> Picture:
        """As `Inpainting.paint`."""
        self.count += 1
        key = hashlib.sha256(picture.tobytes() + mask.tobytes() + repr((prompt, painting)).encode()).digest()
        if key not in self._made:
            start = time.perf_counter()
            self._made[key] = self._inpainting.paint(picture, mask, prompt, painting, on_step=on_step)
            self.samples_ms.append((time.perf_counter() - start) * 1e3)
        return self._made[key]


def measure_video(
    painter: Painter,
    clips: Sequence[Clip],
    painting: Painting,
    scale: float = 0.75,
    keyframes_every: Sequence[int] = KEYFRAMES_EVERY,
    on_progress: Callable[[str], None] = lambda text: None,
) -> VideoResult:
    """Paint around the centres of clips and compare with the clips."""
    layout = layout_for(painter.size, scale)
    mask = border_mask(layout)
    truths, scores = [], []
    between_ms: list[float] = []
    for clip in clips:
        flows = [backward_flow(*pair) for pair in zip(clip.frames, clip.frames[1:], strict=False)]
        truth = _truth(clip, mask, flows)
        truths.append(truth)
        for every in keyframes_every:
            for method in METHODS if every > 1 else METHODS[:1]:
                on_progress(f"{clip.name}: 1 frame in {every} painted, {method}")
                frames, painted_count = shown(painter, layout, clip, painting, scale, every, method, between_ms)
                scores.append(_score(clip, frames, mask, flows, truth, method, every, painted_count))
    paint_ms, frame_ms = float(np.median(painter.samples_ms)), float(np.median(between_ms))
    costs = [_cost([s for s in scores if s.keyframe_every == e], e, paint_ms, frame_ms) for e in keyframes_every]
    return VideoResult(scale, tuple(truths), tuple(scores), tuple(costs))


def border_mask(layout: Layout) -> Mask:
    """True outside the live frame."""
    mask = np.ones(layout.size[::-1], np.bool_)
    mask[layout.centre] = False
    return mask


def shown(
    painter: Painter, layout: Layout, clip: Clip, painting: Painting, scale: float, every: int, method: str,
    between_ms: list[float],
) -> tuple[list[Picture], int]:  # fmt: skip
    """The frames that a method makes of a clip's centres, and how many were painted; times of the others go along."""
    lives = [np.ascontiguousarray(frame[layout.centre]) for frame in clip.frames]
    if method == "repeated":
        return list(_repeated(painter, layout, lives, clip.prompt, painting, every)), -(-len(lives) // every)
    zoom = VideoZoom(painter, Surround(scale, every, look_ahead=method == "look-ahead"))
    frames: list[Picture] = []
    made = zoom.frames(lives, clip.prompt, painting)
    while True:
        painted, start = zoom.painted_count, time.perf_counter()
        frame = next(made, None)
        if frame is None:
            return frames, zoom.painted_count
        if method == "live" and zoom.painted_count == painted:  # the others do part of the work at another time
            between_ms.append((time.perf_counter() - start) * 1e3)
        frames.append(frame)


def _repeated(
    painter: Painter, layout: Layout, lives: Sequence[Picture], prompt: str, painting: Painting, every: int
) -> Iterator[Picture]:
    """The border of the last keyframe, left where it is."""
    renderer, mask = BorderRenderer(layout), border_mask(layout)
    canvas = np.zeros((*mask.shape, 3), np.uint8)
    for index, live in enumerate(lives):
        if index % every == 0:
            known = np.zeros((*mask.shape, 3), np.uint8)
            known[layout.centre] = live
            canvas = renderer.canvas(painter.paint(known, mask, prompt, painting), live)
        yield renderer.frame(live, [Painted(canvas, CameraMotion())])


def _truth(clip: Clip, mask: Mask, flows: Sequence[Flow]) -> Truth:
    steps = zip(clip.frames, clip.frames[1:], flows, strict=False)
    return Truth(
        clip=clip.name,
        prompt=clip.prompt,
        seam_ratio=_finite_mean([seam_ratio(frame, mask) for frame in clip.frames]),
        flicker_levels=_finite_mean([flicker_levels(one, other, mask, flow) for one, other, flow in steps]),
        detail_levels=_mean([statistics(frame, mask).detail_levels for frame in clip.frames]),
    )


def _score(
    clip: Clip, frames: Sequence[Picture], mask: Mask, flows: Sequence[Flow], truth: Truth, method: str, every: int,
    painted_count: int,
) -> Score:  # fmt: skip
    pairs = list(zip(clip.frames, frames, strict=True))
    detail = _mean([statistics(frame, mask).detail_levels for frame in frames])
    flicker = [flicker_levels(*each) for each in zip(frames, frames[1:], [mask] * len(flows), flows, strict=False)]
    return Score(
        clip=clip.name,
        method=method,
        keyframe_every=every,
        frame_count=len(frames),
        painted_count=painted_count,
        border_psnr_db=_mean([min(border_psnr_db(*pair, mask), EQUAL_PSNR_DB) for pair in pairs]),
        border_ssim=_mean([border_ssim(*pair, mask) for pair in pairs]),
        seam_ratio=_finite_mean([seam_ratio(frame, mask) for frame in frames]),
        flicker_levels=_finite_mean(flicker),
        flicker_worst_levels=_finite_mean([max(flicker, default=math.nan)]),
        detail_ratio=_finite_mean([detail / truth.detail_levels if truth.detail_levels else math.nan]),
    )


def _cost(scores: Sequence[Score], every: int, paint_ms: float, between_ms: float) -> Cost:
    fraction = sum(score.painted_count for score in scores) / sum(score.frame_count for score in scores)
    frame_ms = fraction * paint_ms + (1 - fraction) * between_ms
    return Cost(every, round(fraction, 4), round(frame_ms, 3), round(paint_ms, 3), round(between_ms, 3))


def _named(on_progress: Callable[[str], None], name: str, text: str) -> None:
    on_progress(f"{name}: {text}")


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _finite_mean(values: Sequence[float]) -> float | None:
    """Of the values that are numbers: flat pictures have no seam, and what moved out of sight no flicker."""
    finite = [value for value in values if math.isfinite(value)]
    return _mean(finite) if finite else None


def bench_video(
    bundles: dict[str, Path],
    video: Path,
    out: Path,
    settings: BenchSettings,
    on_progress: Callable[[str], None] = lambda text: None,
) -> VideoBench:
    """Measure each bundle on a wide video, its centre the input, for at most `settings.seconds`; write OUT/video.json.

    Raises UserError for a file that is no video, or shorter than two frames.
    """
    results = {}
    for name, path in bundles.items():
        with open_bundle(path) as zoom:
            with VideoReader(video, zoom.size) as reader:
                frames = [
                    frame
                    for frame, _ in zip(
                        reader, range(min(max(round(settings.seconds * reader.fps), 1), MAX_FRAMES)), strict=False
                    )
                ]
            if len(frames) < MIN_FRAMES:
                raise UserError(f"'{video}' has {len(frames)} frame", hint="give a video of some seconds")
            clip = Clip(printable(video.name), settings.prompt, frames)
            results[name] = measure_video(
                Painter(zoom.inpainting), [clip], settings.painting,
                on_progress=partial(_named, on_progress, name),
            )  # fmt: skip
    bench = VideoBench(printable(str(video)), settings, results)
    write_json(bench, out / "video.json")
    return bench
