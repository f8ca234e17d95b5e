"""A zoom from beginning to end: its keyframes painted once and kept, and shown outwards, inwards or in a loop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import geometry
from .bundle import MANIFEST_NAME
from .course import Course, render
from .errors import UserError
from .files import sha256_of
from .inpainting import Painting, Picture
from .keyframes import KeyframeFolder
from .prompts import Prompts
from .schedulers import default_scheduler
from .zoom import Motion, Zoom

RING = 0.5  # how much of the border between a zoom and the picture that closes it is painted
_BELOW_A_PIXEL = 0.5


@dataclass(frozen=True, eq=False)
class Film:
    """What a zoom shows. Pictures are uint8 (height, width, 3) of the bundle's size.

    It begins with `start`. With `end` the outermost keyframe is that picture, the zoom in its centre. A `loop` ends
    in `start` again: the zoom lies in the centre of the very picture that it began with, and so on inwards.
    """

    start: Picture
    prompts: Prompts
    motion: Motion
    painting: Painting
    end: Picture | None = None
    loop: bool = False

    def __post_init__(self) -> None:
        if self.loop and self.end is not None:
            raise UserError("a loop ends in the picture it began with", hint="leave out the end picture or the loop")

    @cached_property
    def course(self) -> Course:
        """Where the keyframes are; raises UserError for a zoom that is too short to be closed."""
        return Course.of(self.motion, "loop" if self.loop else "open" if self.end is None else "end")

    @property
    def around(self) -> Picture | None:
        """The picture that closes the zoom."""
        return self.start if self.loop else self.end

    def prompt(self, keyframe: int) -> str:
        """What a keyframe is painted from."""
        return self.prompts.at(keyframe, self.course.seconds_of(keyframe))

    def made_from(self, keyframe: int) -> dict[str, Any]:
        """What decides how a keyframe looks, besides the one before and what all have in common."""
        made = {"prompt": self.prompt(keyframe), "scale": self.course.scale(keyframe)}
        if self.around is not None and keyframe == self.course.last:
            made["end picture"] = _hash(self.around)
        return made


def open_keyframes(path: str | Path, zoom: Zoom, film: Film) -> KeyframeFolder:
    """The folder of a film's keyframes, whether there are any yet or not.

    Raises UserError for a folder that holds something else, or keyframes of another film.
    """
    for picture in (film.start, film.end):
        if picture is not None:
            zoom.check_picture(picture)
    manifest = zoom.bundle.manifest
    painting = asdict(film.painting)
    painting["scheduler"] = film.painting.scheduler or default_scheduler(manifest.scheduler)
    settings = {
        "bundle": sha256_of(zoom.bundle.path / MANIFEST_NAME),
        "size": "x".join(map(str, zoom.size)),
        "picture": _hash(film.start),
        **painting,
    }
    return KeyframeFolder(path, zoom.size, settings, film.made_from)


def film_frames(
    zoom: Zoom,
    film: Film,
    keyframes: KeyframeFolder,
    zoom_in: bool = False,
    on_step: Callable[[], None] | None = None,
) -> Iterator[Picture]:
    """The frames of a film, uint8 (height, width, 3) RGB, in their order or, for a zoom-in, the other way round.

    A keyframe that is in the folder is not painted again; one that isn't is painted when it is needed, and kept. Two
    or three are in memory at a time. `on_step` is called after each step of painting.
    """
    course = film.course
    painter = _Painter(zoom, film, keyframes, on_step)
    order = range(course.frame_count)[:: -1 if zoom_in else 1]
    if not film.loop:
        return render(course, painter.keyframe, zoom.feather_px, order)
    return _looped(painter, course, order)


def _looped(painter: _Painter, course: Course, order: range) -> Iterator[Picture]:
    folder, last = painter.folder, course.last
    painter.keyframe(last)
    if not folder.has_lap(last):
        _close_lap(painter, course)
    yield from render(course, lambda i: folder.load_lap(i, last), painter.zoom.feather_px, order)


def _close_lap(painter: _Painter, course: Course) -> None:
    """Keep a lap of keyframes each of which shows the one before in its centre, the first one the last.

    The last keyframe painted is the start picture with the zoom in its centre, so a lap that begins with it instead
    differs from the first lap in the centre alone, and the next one from that in the centre of the centre: until
    that is less than a pixel.
    """
    last, zoom = course.last, painter.zoom
    shrinks = [course.scale(i) for i in range(1, last + 1)]
    laps = math.ceil(math.log(_BELOW_A_PIXEL / max(zoom.size)) / math.log(math.prod(shrinks)))
    inner = painter.keyframe(last)
    for lap in range(laps):
        for i, scale in enumerate(shrinks, 1):
            inner = geometry.paste_centered(painter.keyframe(i), inner, scale, zoom.feather_px)
            if lap == laps - 1:
                painter.folder.save_lap(i, last, inner)


class _Painter:
    """Gives keyframes by number: those of the folder, and those that are not there yet as they are painted."""

    def __init__(self, zoom: Zoom, film: Film, folder: KeyframeFolder, on_step: Callable[[], None] | None) -> None:
        self.zoom = zoom
        self.film = film
        self.folder = folder
        self._on_step = on_step
        self._count = folder.count(film.course.last)
        self._newest: tuple[int, Picture] = (0, film.start)

    def keyframe(self, index: int) -> Picture:
        """Raises as KeyframeFolder.load and Inpainting.paint do."""
        while index > 0 and self._count <= index:
            self._paint_next()
        return self._kept(index)

    def _kept(self, index: int) -> Picture:
        if index == 0:
            return self.film.start
        return self._newest[1] if index == self._newest[0] else self.folder.load(index)

    def _paint_next(self) -> None:
        index = max(self._count, 1)
        film, scale = self.film, self.film.course.scale(index)
        inner, prompt = self._kept(index - 1), film.prompt(index)
        if film.around is not None and index == film.course.last:
            painted = _joined(self.zoom, inner, film.around, index, prompt, scale, film.painting, self._on_step)
        else:
            painted = self.zoom.keyframe_around(inner, index, prompt, scale, film.painting, self._on_step)
        if self._count == 0:
            self.folder.save(0, film.start)
        self.folder.save(index, painted)
        self._count, self._newest = index + 1, (index, painted)


def _joined(
    zoom: Zoom,
    inner: Picture,
    around: Picture,
    index: int,
    prompt: str,
    scale: float,
    painting: Painting,
    on_step: Callable[[], None] | None,
) -> Picture:
    """`around` with `inner`, shrunk by `scale`, in its centre, and a ring painted between them that joins the two."""
    ring_scale = scale + RING * (1 - scale)
    known = geometry.paste_centered(around, inner, scale)
    mask = geometry.outside_mask(zoom.size, scale) & ~geometry.outside_mask(zoom.size, ring_scale)
    painted = zoom.inpainting.paint(known, mask, prompt, painting, index, on_step=on_step)
    painted = geometry.framed(painted, around, ring_scale, zoom.feather_px)
    return geometry.paste_centered(painted, inner, scale, zoom.feather_px)


def _hash(picture: Picture) -> str:
    return hashlib.sha256(json.dumps(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()
