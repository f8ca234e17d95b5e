"""Paints keyframes of a live zoom in a thread of its own, a few ahead of the camera."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from . import geometry
from .inpainting import Picture
from .operating_points import OperatingPoint
from .zoom import Motion, Zoom

LOOKAHEAD = 2  # keyframes painted beyond the one that the camera is moving to
ESTIMATED_FROM = 3  # the last so many keyframes; of their speeds the median counts
NICENESS = 5  # of the threads that paint, so that a frame that is due comes first


@dataclass(frozen=True)
class Keyframe:
    """A keyframe and how deep in the zoom it is: see zoom_camera.py."""

    picture: Picture
    depth: float
    index: int
    prompt: str


@dataclass(frozen=True)
class Progress:
    """What has been painted so far, and how it goes on.

    A keyframe is `late` when a camera at the speed that was asked for, from where it was as the painting began, would
    have had to wait for it; the first and those that the zoom was stopped meanwhile don't count. `due_seconds` is when
    the next is expected, and `painting_seconds` what one takes at the point in force: None before the first.
    """

    painted: int
    late: int
    painting_seconds: float | None
    due_seconds: float
    painted_depth: float


class _StoppedError(Exception):
    """The thread was asked to end in the middle of a keyframe."""


class Painter:
    """Paints the next keyframe whenever fewer than LOOKAHEAD are ready; `start` it, and `stop` it at the end.

    All methods may be called from any thread. What the painting raises ends it, and is in `error`.
    """

    def __init__(self, zoom: Zoom, image: Picture, prompt: str, motion: Motion, point: OperatingPoint) -> None:
        """Raises UserError for a picture of another size than the bundle paints."""
        zoom.check_picture(image)
        self.error: BaseException | None = None
        self.seconds: deque[float] = deque(maxlen=10_000)  # that each keyframe took
        self._zoom, self._motion = zoom, motion
        self._changed = threading.Condition()
        self._keyframes = deque([Keyframe(image, 0.0, 0, prompt)])  # from the one that the camera has passed last
        self._prompt, self._point = prompt, point
        self._running, self._stopped, self._on_time = True, False, True
        self._camera_depth = 0.0
        self._painted = self._late = 0
        self._seconds_per_work: deque[float] = deque(maxlen=ESTIMATED_FROM)
        self._now_painting: OperatingPoint | None = None
        self._done_calls: list[float] = []  # when each call of the UNet for the keyframe in work ended
        self._thread = threading.Thread(target=self._run, name="outzoom-painter", daemon=True)

    def start(self) -> None:
        """Begin to paint."""
        self._thread.start()

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """End after the UNet's call in work, and wait for that; whether it has ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def change(
        self, prompt: str | None = None, point: OperatingPoint | None = None, running: bool | None = None
    ) -> None:
        """From the next keyframe on; when not running, no other is begun."""
        with self._changed:
            self._prompt = self._prompt if prompt is None else prompt
            self._point = self._point if point is None else point
            if running is not None:
                self._on_time = self._on_time and running  # a stop in between is no delay
                self._running = running
            self._changed.notify_all()

    @property
    def prompt(self) -> str:
        """What the next keyframe will be painted from."""
        return self._prompt

    def around(self, depth: float) -> tuple[Keyframe, Keyframe | None]:
        """The keyframes that the camera at `depth` is between; those before are forgotten. None: not painted yet."""
        with self._changed:
            self._camera_depth = depth
            passed = False
            while len(self._keyframes) > 1 and self._keyframes[1].depth <= depth:
                self._keyframes.popleft()
                passed = True
            if passed:
                self._changed.notify_all()
            return self._keyframes[0], self._keyframes[1] if len(self._keyframes) > 1 else None

    def progress(self) -> Progress:
        """How the painting goes."""
        with self._changed:
            seconds = self._estimate(self._point)
            due = seconds or 0.0
            if self._now_painting is not None and seconds is not None:
                calls = self._now_painting.calls
                left = 1 - sum(calls[: len(self._done_calls)]) / self._now_painting.work
                due = left * (self._estimate(self._now_painting) or seconds)
            return Progress(self._painted, self._late, seconds, due, self._keyframes[-1].depth)

    def _estimate(self, point: OperatingPoint) -> float | None:
        if not self._seconds_per_work:
            return None
        return float(np.median(self._seconds_per_work)) * point.work

    def _run(self) -> None:
        _be_nice()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._wanted)
                    if self._stopped:
                        return
                    last, prompt, point = self._keyframes[-1], self._prompt, self._point
                    deadline = self._deadline(time.monotonic())
                    self._now_painting, self._on_time = point, True
                self._paint(last, prompt, point, deadline)
        except _StoppedError:
            return
        except BaseException as error:  # whatever it is, who waits for keyframes must be told
            self.error = error
        finally:
            self._now_painting = None

    @property
    def _wanted(self) -> bool:
        return self._running and len(self._keyframes) < 2 + LOOKAHEAD

    def _deadline(self, now: float) -> float:
        """When a camera at the speed asked for reaches the last keyframe that there is."""
        ahead = self._keyframes[-1].depth - self._camera_depth
        return now + ahead / (math.log(self._motion.zoom_rate) * self._point.pace)

    def _paint(self, last: Keyframe, prompt: str, point: OperatingPoint, deadline: float) -> None:
        scale = geometry.keyframe_scale(self._motion.zoom_rate, point.keyframe_every, self._motion.fps)
        index = last.index + 1
        started = time.monotonic()
        picture = self._zoom.keyframe_around(last.picture, index, prompt, scale, point.painting, self._on_step)
        now = time.monotonic()
        with self._changed:
            self._seconds_per_work.append(self._speed(point, now - started))
            self._keyframes.append(Keyframe(picture, last.depth - math.log(scale), index, prompt))
            self._painted += 1
            self._late += now > deadline and self._on_time and index > 1
            self.seconds.append(now - started)
            self._now_painting, self._done_calls = None, []

    def _on_step(self) -> None:
        with self._changed:
            self._done_calls.append(time.monotonic())
            if self._stopped:
                raise _StoppedError

    def _speed(self, point: OperatingPoint, seconds: float) -> float:
        """Seconds per unit of work; of the first keyframe by its calls alone, for it loads engines."""
        done = self._done_calls
        if self._painted == 0 and len(done) > 1:
            return (done[-1] - done[0]) / sum(point.calls[1:])
        return seconds / point.work


def _be_nice() -> None:
    """Lower the priority of this thread and of those that it starts: Linux has one for each."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
