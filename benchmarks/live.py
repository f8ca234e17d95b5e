"""The live zoom on this machine, as a viewer in another process gets it over HTTP.

`python -m outzoom.benchmarks.live BUNDLE --out benchmarks/results/live.json`. The first phase has the machine to
itself; in the second, one process for each core takes what time it gets, and in the third they are gone again: what the
governor does about that is in the result. Only what is in phases is counted, not opening the bundle.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from ..runtime import LiveStatus, LiveZoom, Motion, load_image, open_bundle, presets_from
from ..runtime.errors import OutzoomError
from ..runtime.files import atomic_file
from ..runtime.live_server import LiveServer
from ..runtime.machine import peak_rss_bytes
from ..runtime.pacing import Pacing, pacing
from .machine import describe_machine
from .results import Latency
from .settings import BenchSettings

ENDLESS_LOOP = "while True: pass"
WARM_UP_KEYFRAMES = 3
ON_TIME = 1.5  # an interval between frames that is longer than so many periods is one that an eye sees


class Phase(msgspec.Struct, frozen=True):
    """What came in one phase. `viewer` are the frames that arrived; `dropped` there are those that it missed.

    `zoom_rate_fraction` is the mean of the camera's speed over what was asked for, `levels` the share of the time that
    the governor spent at each of its points, by index.
    """

    name: str
    seconds: float
    busy_processes: int
    viewer: dict[str, Any]
    long_intervals: int
    frames_dropped: int  # left out by the renderer
    keyframes_painted: int
    keyframes_per_second: float
    keyframes_late: int
    painting: Latency | None
    zoom_rate_fraction: float
    levels: dict[int, float]
    power_watts: float | None
    temperature_celsius: float | None


def measure(bundle: Path, motion: Motion, seconds: float, governed: bool) -> dict[str, Any]:
    """All phases of one live zoom; raises OutzoomError as the zoom does."""
    settings = BenchSettings()
    machine = describe_machine()
    with ExitStack() as stack:
        zoom = stack.enter_context(open_bundle(bundle))
        paintings = presets_from("quality", zoom.bundle.manifest, {"guidance": settings.guidance})
        picture = load_image(settings.picture, zoom.size)
        live = LiveZoom(zoom, picture, settings.prompt, paintings, motion, governed=governed)
        server = stack.enter_context(LiveServer())
        stack.enter_context(live)
        stack.enter_context(server.serving(live))
        while live.status().keyframes_painted < WARM_UP_KEYFRAMES:
            live.wait(0.1)
        cores = machine.usable_cores
        names = {"alone": 0, f"beside {cores} busy processes": cores, "alone again": 0}
        phases = [_phase(name, live, server.url, seconds, busy) for name, busy in names.items()]
        status = live.status()
    return {
        "command": "python -m outzoom.benchmarks.live BUNDLE --out benchmarks/results/live.json",
        "date": time.strftime("%Y-%m-%d"),
        "bundle": bundle.name,
        "source": zoom.bundle.manifest.source.name,
        "size": zoom.size,
        "motion": {name: value for name, value in asdict(motion).items() if name != "seconds"},
        "painting": asdict(paintings["quality"]),
        "governed": governed,
        "levels": status.levels,
        "power_method": status.power_method,
        "phases": msgspec.to_builtins(phases),
        "peak_rss_bytes": peak_rss_bytes(),
        "machine": msgspec.to_builtins(machine),
    }


def _phase(name: str, live: LiveZoom, url: str, seconds: float, busy: int) -> Phase:
    with _busy(busy), _viewer(url, seconds) as viewer:
        before, took_before = live.status(), len(live.painting_seconds)
        samples = [before]
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            live.wait(min(left, 1.0))
            samples.append(live.status())
        assert viewer.stdout is not None
        arrived = json.loads(viewer.stdout.read())
    after = samples[-1]
    elapsed = after.elapsed_seconds - before.elapsed_seconds
    frames, long_intervals = _as_seen(arrived, after.target_fps)
    painted = after.keyframes_painted - before.keyframes_painted
    painting_ms = [1e3 * one for one in live.painting_seconds[took_before:]]
    return Phase(
        name=name,
        seconds=round(elapsed, 2),
        busy_processes=busy,
        viewer={key: round(value, 3) for key, value in asdict(frames).items()},
        long_intervals=long_intervals,
        frames_dropped=after.frames_dropped - before.frames_dropped,
        keyframes_painted=painted,
        keyframes_per_second=round(painted / elapsed, 3),
        keyframes_late=after.keyframes_late - before.keyframes_late,
        painting=Latency.of(painting_ms) if painting_ms else None,
        zoom_rate_fraction=round(float(np.mean([_speed_fraction(one) for one in samples[1:]])), 4),
        levels=_shares([one.level for one in samples[1:]]),
        power_watts=_mean([one.power_watts for one in samples[1:]]),
        temperature_celsius=_mean([one.temperature_celsius for one in samples[1:]]),
    )


def _as_seen(arrived: list[tuple[float, int]], fps: float) -> tuple[Pacing, int]:
    """How steadily numbered frames arrived, and how many intervals were long."""
    times, numbers = zip(*arrived, strict=True)
    missed = int(np.sum(np.diff(numbers) - 1))
    return pacing(times, missed), int(np.sum(np.diff(times) > ON_TIME / fps))


def _speed_fraction(status: LiveStatus) -> float:
    return math.log(status.zoom_rate) / math.log(status.zoom_rate_asked)


def _shares(levels: list[int]) -> dict[int, float]:
    return {level: round(levels.count(level) / len(levels), 3) for level in sorted(set(levels))}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 2) if known else None


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that take all the time that they get."""
    children = [subprocess.Popen([sys.executable, "-c", ENDLESS_LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def _viewer(url: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that watches for so long, and then prints what came."""
    command = [sys.executable, "-m", "outzoom.benchmarks.live", "--watch", url, "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewer:
        yield viewer


def watch(url: str, seconds: float) -> list[tuple[float, int]]:
    """When each frame of a live zoom arrived whole, in time.monotonic, and its number."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    connection.request("GET", f"/stream?{address.query}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise OutzoomError(f"the live zoom answered {answer.status}: {answer.read().decode(errors='replace')}")
    arrived = [_part(answer)]
    until = arrived[0][0] + seconds
    while arrived[-1][0] < until:
        arrived.append(_part(answer))
    connection.close()
    return arrived


def _part(stream: IO[bytes]) -> tuple[float, int]:
    fields: dict[str, str] = {}
    while (line := stream.readline().decode().strip()) or not fields:
        name, separator, value = line.partition(":")
        if separator:
            fields[name.lower()] = value.strip()
    stream.read(int(fields["content-length"]))
    return time.monotonic(), int(fields["x-frame"])


def main() -> None:
    """Measure, and write the result; with --watch, be the viewer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--fps", type=float, default=24.0)
    parser.add_argument("--keyframe-every", type=int, default=24)
    parser.add_argument("--no-governor", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        print(json.dumps(watch(arguments.watch, arguments.seconds)))
        return
    if arguments.bundle is None:
        parser.error("name a bundle")
    motion = replace(Motion(), fps=arguments.fps, keyframe_every=arguments.keyframe_every)
    result = json.dumps(measure(arguments.bundle, motion, arguments.seconds, not arguments.no_governor), indent=1)
    print(result)
    if arguments.out:
        with atomic_file(arguments.out) as partial:
            partial.write_text(result + "\n")


if __name__ == "__main__":
    main()
