"""How fast frames between keyframes are made, and whether memory stays flat: `python -m outzoom.benchmarks.rendering`.

The speed is that of one core at 512x512, of the still zoom's `in_between` and of a video's moved border, without
painting, decoding or encoding. The memory is that of the whole loop on a real bundle, from file to file.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..runtime import Motion, OutzoomError, Painting, VideoReader, VideoWriter, open_bundle
from ..runtime.border import BorderRenderer, Painted, layout_for
from ..runtime.camera import Camera, CameraMotion, load_opencv
from ..runtime.errors import printable
from ..runtime.geometry import in_between
from ..runtime.video_reader import Picture
from ..runtime.video_zoom import Surround, VideoZoom
from ..runtime.zoom import FEATHER_FRACTION, Zoom
from .machine import describe_machine
from .measure import CpuShare, rss_bytes
from .results import Latency, Machine
from .scripts import complain, write_json
from .settings import DEMO_PROMPT

SCHEMA_VERSION = 1
SIDE = 512
STILL_KEYFRAMES_EVERY = 30
ZOOM_RATE = 2.0
SCALE = 0.75
FIRST_SAMPLE, SAMPLE_EVERY = 500, 100
LONG_KEYFRAMES_EVERY = 200
CLIP_FRAMES = 600  # the long video's input, whose frames are repeated


class Speed(msgspec.Struct, frozen=True):
    """One way of making frames, on one core: all of its frames, and the slowest kind of them."""

    frame: Latency
    frames_per_second: float
    slowest_median_ms: float
    slowest: str


class Memory(msgspec.Struct, frozen=True):
    """Resident memory while frames come out, from frame 500 on; `spread_fraction` is (most - least) / least."""

    frame_count: int
    keyframes_painted: int
    seconds: float
    rss_bytes: tuple[int, ...]  # at frame 500 and at every 100th after it
    spread_fraction: float


class RenderingResult(msgspec.Struct, frozen=True):
    """The contents of the result file."""

    schema_version: int
    created_utc: str
    outzoom_version: str
    command: str
    machine: Machine
    opencv: str
    side_px: int
    still: Speed
    video: Speed
    memory_bundle: str
    memory_side_px: int
    memory_still: Memory
    memory_video: Memory
    other_cpu_fraction: float


def waves(side: int, x: float) -> Picture:
    """A smooth picture with something to follow everywhere, as seen from `x`."""
    columns, rows = np.meshgrid(np.arange(side) + x, np.arange(side))
    levels = [
        127 + 60 * np.sin(columns / p) * np.cos(rows / q) + 50 * np.sin((columns + 2 * rows) / r)
        for p, q, r in ((9, 13, 31), (11, 8, 37), (15, 17, 29))
    ]
    picture: Picture = np.clip(np.rint(np.stack(levels, -1)), 0, 255).astype(np.uint8)
    return picture


def _timed_ms(make: Callable[[], object], runs: int) -> list[float]:
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        make()
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def _speed(kinds: dict[str, Callable[[], object]], runs: int) -> Speed:
    """Each kind of frame as often as the others, in turn."""
    samples_ms: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(runs + 2):
        for name, make in kinds.items():
            (elapsed_ms,) = _timed_ms(make, 1)
            if number >= 2:  # the first ones warm up
                samples_ms[name].append(elapsed_ms)
    every = list(itertools.chain.from_iterable(samples_ms.values()))
    medians = {name: float(np.median(samples)) for name, samples in samples_ms.items()}
    slowest = max(medians, key=lambda name: medians[name])
    return Speed(Latency.of(every), round(1e3 / float(np.mean(every)), 2), round(medians[slowest], 3), slowest)


def still_speed(runs: int) -> Speed:
    """`in_between` at every time between two keyframes of the zoom with default settings."""
    inner, outer = waves(SIDE, 0), waves(SIDE, 100)
    scale = ZOOM_RATE ** (-STILL_KEYFRAMES_EVERY / 30)
    kinds: dict[str, Callable[[], object]] = {}
    for step in range(1, STILL_KEYFRAMES_EVERY):
        t = step / STILL_KEYFRAMES_EVERY
        kinds[f"t = {t:.2f}"] = lambda t=t: in_between(inner, outer, scale, t, SIDE * FEATHER_FRACTION)  # type: ignore[misc]
    return _speed(kinds, runs)


def video_speed(runs: int) -> Speed:
    """Following the camera, and composing a frame from one canvas or from two, each moved and turned."""
    layout = layout_for((SIDE, SIDE), SCALE)
    renderer, camera = BorderRenderer(layout), Camera()
    frames = [waves(SIDE, 2 * index) for index in range(10)]
    lives = [np.ascontiguousarray(frame[layout.centre]) for frame in frames]
    turn = itertools.cycle(range(len(frames)))
    motion = CameraMotion(1.01, 0.005, 5.3, -2.7)

    def make(sources: list[Painted]) -> Picture:
        live = lives[next(turn)]
        camera.step(live)
        return renderer.frame(live, sources)

    one = [Painted(frames[0], motion)]
    two = [Painted(frames[0], motion, 0.4), Painted(frames[9], motion.inverse(), 0.6)]
    return _speed({"one canvas": lambda: make(one), "two canvases": lambda: make(two)}, runs)


def _memory(frames: Iterator[Picture], write: Callable[[Picture], object], painted: Callable[[], int]) -> Memory:
    start, rss, count = time.monotonic(), [], 0
    for frame in frames:
        write(frame)
        count += 1
        if count >= FIRST_SAMPLE and count % SAMPLE_EVERY == 0:
            rss.append(rss_bytes())
    spread = (max(rss) - min(rss)) / min(rss)
    return Memory(count, painted(), round(time.monotonic() - start, 1), tuple(rss), round(spread, 4))


def still_memory(zoom: Zoom, count: int, work: Path) -> Memory:
    """Zoom out of a picture over `count` frames, into a file."""
    motion = Motion(count / 30, 30.0, 1.1, LONG_KEYFRAMES_EVERY)
    frames = zoom.frames(waves(zoom.size[0], 0), DEMO_PROMPT, motion, Painting(guidance=1))
    with VideoWriter(work / "still.mp4", *zoom.size, 30) as writer:
        return _memory(frames, writer.write, lambda: motion.painted_count)


def video_memory(zoom: Zoom, count: int, work: Path) -> Memory:
    """Zoom out of a video over `count` frames, from file to file."""
    source = work / "source.mp4"
    fps = 30.0
    with VideoWriter(source, *zoom.size, fps * CLIP_FRAMES / count) as writer:
        for index in range(CLIP_FRAMES):
            writer.write(waves(zoom.size[0], 0.5 * index))
    around = VideoZoom(zoom.inpainting, Surround(SCALE, LONG_KEYFRAMES_EVERY))
    with (
        VideoReader(source, around.live_size, fps) as reader,
        VideoWriter(work / "video.mp4", *zoom.size, reader.fps) as writer,
    ):
        frames = around.frames(reader, DEMO_PROMPT, Painting(guidance=1))
        return _memory(frames, writer.write, lambda: around.painted_count)


def measure_rendering(bundle: Path, runs: int, count: int) -> RenderingResult:
    """Measure speed on one core of this process, and memory over `count` frames."""
    cv2 = load_opencv()
    machine, cpu = describe_machine(), CpuShare()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    still, video = still_speed(max(runs // 4, 1)), video_speed(runs)
    cv2.setNumThreads(threads)
    other_cpu_fraction = cpu.of_others()
    with tempfile.TemporaryDirectory(prefix="outzoom-rendering-") as folder, open_bundle(bundle) as zoom:
        memory_still = still_memory(zoom, count, Path(folder))
        memory_video = video_memory(zoom, count, Path(folder))
        return RenderingResult(
            schema_version=SCHEMA_VERSION,
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            outzoom_version=version("outzoom"),
            command=shlex.join(["python", "-m", "outzoom.benchmarks.rendering", bundle.name, *sys.argv[2:]]),
            machine=machine,
            opencv=cv2.__version__,
            side_px=SIDE,
            still=still,
            video=video,
            memory_bundle=printable(bundle.name),
            memory_side_px=zoom.size[0],
            memory_still=memory_still,
            memory_video=memory_video,
            other_cpu_fraction=other_cpu_fraction,
        )


def main() -> int:
    """Measure, write the result and say it."""
    parser = argparse.ArgumentParser(prog="python -m outzoom.benchmarks.rendering", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the result, a JSON file")
    parser.add_argument("--runs", type=int, default=60, help="timed frames of each kind")
    parser.add_argument("--frames", type=int, default=10_000, help="frames over which memory is watched")
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.frames < FIRST_SAMPLE + SAMPLE_EVERY:
        parser.error(f"--runs must be at least 1, --frames at least {FIRST_SAMPLE + SAMPLE_EVERY}")
    try:
        result = measure_rendering(arguments.bundle, arguments.runs, arguments.frames)
    except OutzoomError as error:
        return complain(error)
    write_json(result, arguments.out)
    said: dict[str, Any] = {"still": (result.still, result.memory_still), "video": (result.video, result.memory_video)}
    for name, (speed, memory) in said.items():
        print(
            f"{name}: {speed.frames_per_second:.0f} frames per second, slowest {speed.slowest_median_ms:.1f} ms "
            f"({speed.slowest}); memory {min(memory.rss_bytes) / 1e6:.0f} MB, spread {memory.spread_fraction:.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
