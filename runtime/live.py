"""The live zoom: keyframes are painted beside the frames between them, which are shown at a steady rate.

Three threads: the painter stays a few keyframes ahead (painter.py; engines release Python's lock while they run), the
renderer makes each frame before it is due and hands it out when it is, and the controller reads the sensors once a
second and lets the governor choose (governor.py). Painting that is late slows the camera down (zoom_camera.py), not the
frames. Memory holds at most LOOKAHEAD + 2 keyframes and two frames.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from . import geometry
from .errors import UserError
from .governor import Limits, Observation, State, decide
from .inpainting import Painting, Picture
from .latest import LatestFrame
from .operating_points import OperatingPoint, operating_points
from .pacing import FrameClock, Pacing, RecentFrames
from .painter import Painter
from .sensors import NOT_MEASURED, PowerMeter, temperature_celsius
from .zoom import Motion, Zoom
from .zoom_camera import Camera

CONTROL_SECONDS = 1.0
TELLING_SECONDS = 3.0  # of frames, before it counts that some were left out
HOLD_SPEED = 1e-4  # a slower camera stands still
MAX_PROMPT_CHARACTERS = 1000
STOP_SECONDS = 30.0  # how long the end waits for the UNet's call in work


@dataclass(frozen=True)
class LiveStatus:
    """What a live zoom does now; what isn't known or can't be measured is None.

    `frames` are those of the last 10 seconds. `latency_ms`: from when a frame was due to when a viewer's connection had
    taken it. `prompt_latency_seconds`: from the last change of the prompt to the first frame that shows it. Speeds are
    zoom rates, by how much the view widens per second.
    """

    running: bool
    prompt: str
    elapsed_seconds: float
    target_fps: float
    frames: Pacing
    frames_shown: int
    frames_dropped: int
    latency_ms: float | None
    render_ms: float | None
    zoom_rate: float
    zoom_rate_asked: float
    keyframe_every: int
    keyframes_painted: int
    keyframes_late: int
    keyframes_per_second: float
    painting_seconds: float | None
    prompt_latency_seconds: float | None
    preset: str
    steps: int
    pace: float
    level: int
    levels: int
    reason: str
    power_watts: float | None
    power_method: str
    temperature_celsius: float | None
    error: str | None


class LiveZoom:
    """A zoom that goes on until it is closed, as a context manager; all methods may be called from any thread.

    >>> with open_bundle(path) as zoom, LiveZoom(zoom, picture, "a reef", {"quality": Painting()}) as live:
    ...     frame = live.latest.newer(0, timeout_seconds=60)  # doctest: +SKIP
    """

    def __init__(
        self,
        zoom: Zoom,
        image: Picture,
        prompt: str,
        paintings: Mapping[str, Painting],
        motion: Motion | None = None,
        limits: Limits | None = None,
        governed: bool = True,
        power: PowerMeter | None = None,
    ) -> None:
        """`paintings` by name, the best first; with `governed` off only that one is used, as `motion` says.

        Raises UserError for a picture, prompt or painting that doesn't go.
        """
        self.latest = LatestFrame()
        self._zoom, self._paintings, self._motion = zoom, dict(paintings), motion or Motion(fps=24)
        self._limits, self._governed, self._power = limits or Limits(), governed, power or PowerMeter()
        self._points = self._operating_points(self._motion)
        self._painter = Painter(zoom, image, checked_prompt(prompt), self._motion, self._points[0])
        self._lock = threading.RLock()  # of all below
        self._state = State()
        self._camera = Camera()
        self._running = True
        self._recent = RecentFrames()
        self._shown = self._dropped = 0
        self._render_ms: deque[float] = deque(maxlen=100)
        self._prompt_changed: float | None = None
        self._prompt_latency_seconds: float | None = None
        self._watts: float | None = None
        self._celsius: float | None = None
        self._started = time.monotonic()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"outzoom-{name}", daemon=True)
            for name, work in (("renderer", self._render), ("controller", self._control))
        ]

    def __enter__(self) -> LiveZoom:
        self._started = time.monotonic()
        self._painter.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._painter.stop(STOP_SECONDS)

    def wait(self, seconds: float) -> bool:
        """Wait so long or until the zoom has failed, and raise what it failed of; whether it goes on."""
        ended = self._ended.wait(seconds)
        if self.failure is not None:
            raise self.failure
        return not ended

    @property
    def failure(self) -> BaseException | None:
        """What ended the painting or the rendering; None: nothing did."""
        return self._error or self._painter.error

    def set_running(self, running: bool) -> None:
        """Let the camera go, or come to a hold; then no keyframe is begun either."""
        with self._lock:
            self._running = running
            self._recent.clear()
            self._painter.change(running=running)

    def set_prompt(self, prompt: str) -> None:
        """Paint from it, from the next keyframe on; raises UserError for a text that is none."""
        prompt = checked_prompt(prompt)
        with self._lock:
            self._prompt_changed, self._prompt_latency_seconds = time.monotonic(), None
            self._painter.change(prompt=prompt)

    def set_keyframe_every(self, keyframe_every: int) -> None:
        """Paint 1 frame in so many; the governor starts again from there. Raises UserError as Motion does."""
        motion = replace(self._motion, keyframe_every=keyframe_every)
        points = self._operating_points(motion)
        with self._lock:
            self._points, self._state = points, State()
            self._painter.change(point=points[0])

    def status(self) -> LiveStatus:
        """What it does now."""
        now = time.monotonic()
        with self._lock:
            point, progress, failure = self._points[self._state.level], self._painter.progress(), self.failure
            return LiveStatus(
                running=self._running,
                prompt=self._painter.prompt,
                elapsed_seconds=now - self._started,
                target_fps=self._motion.fps,
                frames=self._recent.pacing(),
                frames_shown=self._shown,
                frames_dropped=self._dropped,
                latency_ms=self.latest.latency_ms,
                render_ms=float(np.median(self._render_ms)) if self._render_ms else None,
                zoom_rate=math.exp(self._camera.speed),
                zoom_rate_asked=self._motion.zoom_rate,
                keyframe_every=point.keyframe_every,
                keyframes_painted=progress.painted,
                keyframes_late=progress.late,
                keyframes_per_second=self._camera.speed / -math.log(self._scale(point)),
                painting_seconds=progress.painting_seconds,
                prompt_latency_seconds=self._prompt_latency_seconds,
                preset=point.preset,
                steps=point.painting.steps,
                pace=point.pace,
                level=self._state.level,
                levels=len(self._points),
                reason=self._state.reason,
                power_watts=self._watts,
                power_method=self._power.method,
                temperature_celsius=self._celsius,
                error=None if failure is None else str(failure) or type(failure).__name__,
            )

    @property
    def measures_power(self) -> bool:
        """Whether the machine tells its power; on mains a battery doesn't."""
        self._power.read_watts()
        return self._power.method != NOT_MEASURED

    @property
    def measures_temperature(self) -> bool:
        """Whether the machine tells its temperature."""
        return temperature_celsius() is not None

    @property
    def painting_seconds(self) -> list[float]:
        """What each of the last keyframes took."""
        return list(self._painter.seconds)

    def _operating_points(self, motion: Motion) -> tuple[OperatingPoint, ...]:
        points = operating_points(self._paintings, motion, self._zoom.bundle.manifest.scheduler)
        return points if self._governed else points[:1]

    def _scale(self, point: OperatingPoint) -> float:
        return geometry.keyframe_scale(self._motion.zoom_rate, point.keyframe_every, self._motion.fps)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # a thread that ends in silence would leave a picture that stands still
            self._error = error
            self._ended.set()

    def _render(self) -> None:
        clock = FrameClock(time.monotonic(), self._motion.fps)
        index = -1
        while not self._ended.is_set():
            following = clock.following(index, time.monotonic())
            picture = self._frame((following - index) / self._motion.fps, time.monotonic())
            due = clock.due(following)
            if self._ended.wait(max(due - time.monotonic(), 0.0)):
                return
            if picture is not None:
                self.latest.publish(picture, due)
                self._note_shown(following - index - 1)
            index = following

    def _frame(self, seconds: float, started: float) -> Picture | None:
        """The picture `seconds` after the last; None when the zoom is stopped and the camera at rest."""
        progress = self._painter.progress()
        with self._lock:
            rate = math.log(self._motion.zoom_rate) * self._points[self._state.level].pace if self._running else 0.0
            self._camera = camera = self._camera.advanced(
                seconds, rate, progress.painted_depth, progress.due_seconds, progress.painting_seconds or 0.0
            )
            if not self._running and camera.speed < HOLD_SPEED and self._shown:
                return None
        inner, outer = self._painter.around(camera.depth)
        if outer is None:
            return inner.picture
        with self._lock:
            if self._prompt_changed is not None and outer.prompt == self._painter.prompt:
                self._prompt_latency_seconds, self._prompt_changed = time.monotonic() - self._prompt_changed, None
        step = outer.depth - inner.depth
        t = min(max((camera.depth - inner.depth) / step, 0.0), 1.0)
        picture = geometry.in_between(inner.picture, outer.picture, math.exp(-step), t, self._zoom.feather_px)
        with self._lock:
            self._render_ms.append(1e3 * (time.monotonic() - started))
        return picture

    def _note_shown(self, dropped: int) -> None:
        with self._lock:
            self._recent.add(time.monotonic(), dropped)
            self._shown += 1
            self._dropped += dropped

    def _control(self) -> None:
        last, painted = time.monotonic(), 0
        while not self._ended.wait(CONTROL_SECONDS):
            if self._painter.error is not None:
                self._ended.set()
                return
            watts, celsius, now = self._power.read_watts(), temperature_celsius(), time.monotonic()
            with self._lock:
                self._watts, self._celsius = watts, celsius
                progress = self._painter.progress()
                seen = Observation(now - last, progress.painting_seconds, self._shown_fraction(), watts, celsius)
                last = now
                if painted and self._running and self._governed:
                    self._govern(seen)
                elif not painted:
                    self._recent.clear()  # loading the engines takes the machine as nothing does later
                painted = progress.painted

    def _shown_fraction(self) -> float | None:
        """Of the frames that were due lately; None for too few to tell."""
        frames = self._recent.pacing()
        if frames.frames < TELLING_SECONDS * self._motion.fps:
            return None
        return frames.frames / (frames.frames + frames.dropped)

    def _govern(self, seen: Observation) -> None:
        level = self._state.level
        self._state = decide(self._points, self._limits, self._state, seen)
        if self._state.level != level:
            self._recent.clear()
            self._painter.change(point=self._points[self._state.level])


def checked_prompt(prompt: str) -> str:
    """The prompt; raises UserError for one that is too long or no text."""
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(f"a prompt may have {MAX_PROMPT_CHARACTERS} characters, this has {len(prompt)}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError("the prompt is no text that UTF-8 can hold", hint="type it, or paste plain text") from error
    return prompt
