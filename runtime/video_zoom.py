"""The zoom-out of a video: the live frame in the centre, around it a border painted on 1 frame in N and carried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .border import BorderRenderer, Painted, layout_for
from .camera import Camera, CameraMotion
from .errors import UserError
from .inpainting import Painting, Picture
from .memory import Known, Memory
from .shapes import Size

MAX_KEYFRAME_EVERY = 100_000
LOOK_AHEAD_BYTES = 256 * 10**6  # of frames that wait for the next keyframe; longer intervals do without it
FADE_FRAMES = 4  # without look-ahead, a new border takes over from the one before within so many


@dataclass(frozen=True)
class Surround:
    """How a video is surrounded: its frames shrunk to about `scale`, the border painted on 1 frame in `keyframe_every`.

    With `look_ahead` a frame's border comes from the keyframes before and after it, so that frames are held until the
    next keyframe; without it, as live use must, from those before it.
    """

    scale: float = 0.75
    keyframe_every: int = 5
    look_ahead: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.keyframe_every <= MAX_KEYFRAME_EVERY:
            raise UserError(
                f"--keyframe-every must be 1 to {MAX_KEYFRAME_EVERY}, got {self.keyframe_every}", hint="try 5"
            )


class Painter(Protocol):
    """What paints: `Inpainting`."""

    size: Size

    def paint(
        self,
        picture: Picture,
        mask: NDArray[np.bool_],
        prompt: str,
        painting: Painting,
        *,
        on_step: Callable[[], None] | None,
    ) -> Picture:
        """The picture (height, width, 3), painted where the mask is True."""
        ...


class VideoZoom:
    """Zooms out of the frames of a video with an inpainting pipeline, which stays the caller's to close.

    A border that has been painted is moved as the camera moves, and what the video itself showed there before is not
    painted again (see `Memory`). Every keyframe starts from the same noise, so that borders around pictures that are
    alike are alike. Where the scene changes a keyframe is painted out of turn, and nothing of the scene before is used.
    `painted_count` and `cut_count` say how many there were so far.

    Raises UserError for a scale that the bundle's size has no room for, MissingPackageError without OpenCV.
    """

    def __init__(self, inpainting: Painter, surround: Surround | None = None) -> None:
        self.inpainting, self.surround = inpainting, surround or Surround()
        self.layout = layout_for(inpainting.size, self.surround.scale)
        self._renderer = BorderRenderer(self.layout)
        width, height = self.live_size
        held_bytes = self.surround.keyframe_every * width * height * 3
        self._looks_ahead = self.surround.look_ahead and held_bytes <= LOOK_AHEAD_BYTES
        self.painted_count = 0
        self.cut_count = 0

    @property
    def live_size(self) -> Size:
        """The (width, height) that live frames must have."""
        return self.layout.live

    def frames(
        self,
        lives: Iterable[Picture],
        prompt: str,
        painting: Painting | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Picture]:
        """Each live frame, uint8 RGB (height, width, 3) of `live_size`, in the centre of one of the bundle's size."""
        painting = painting or Painting()
        between = _LookAhead(self._renderer) if self._looks_ahead else _Live(self._renderer, self._fade_frames)
        camera, memory, since = Camera(), Memory(self.layout), 0
        for live in lives:
            self._check(live)
            step = camera.step(live)
            memory.move(step.motion)
            since += 1
            if between.has_canvas and not step.is_cut and since < self.surround.keyframe_every:
                yield from between.frame(live, step.motion)
                continue
            camera.anchor()
            if step.is_cut:
                self.cut_count += 1
                memory.forget()
            since = 0
            known = memory.known(live)
            canvas = self._paint(live, known, prompt, painting, on_step)
            memory.remember(canvas, known)
            yield from between.keyframe(live, canvas, None if step.is_cut else step.motion)
        yield from between.rest()

    @property
    def _fade_frames(self) -> int:
        return min(FADE_FRAMES, self.surround.keyframe_every - 1)

    def _paint(
        self, live: Picture, known: Known, prompt: str, painting: Painting, on_step: Callable[[], None] | None
    ) -> Picture:
        """A canvas around the live frame: what is known of it, and the rest painted."""
        painted = known.canvas
        if known.mask.any():
            painted = self.inpainting.paint(known.canvas, known.mask, prompt, painting, on_step=on_step)
            self.painted_count += 1
        return self._renderer.canvas(painted, live, known)

    def _check(self, live: Picture) -> None:
        width, height = self.live_size
        if live.shape != (height, width, 3) or live.dtype != np.uint8:
            raise ValueError(f"a live frame must be uint8 ({height}, {width}, 3), got {live.dtype} {live.shape}")


class _LookAhead:
    """The frames between two keyframes, made when the second one is there."""

    def __init__(self, renderer: BorderRenderer) -> None:
        self._renderer = renderer
        self._canvas: Picture | None = None
        self._motion = CameraMotion()  # from the canvas to the last frame
        self._waiting: list[tuple[Picture, CameraMotion]] = []

    @property
    def has_canvas(self) -> bool:
        return self._canvas is not None

    def frame(self, live: Picture, motion: CameraMotion) -> Iterator[Picture]:
        self._motion = self._motion.then(motion)
        self._waiting.append((live, self._motion))
        yield from ()

    def keyframe(self, live: Picture, canvas: Picture, motion: CameraMotion | None) -> Iterator[Picture]:
        """The frames before a keyframe, and it; without a motion, the scene changed."""
        if motion is None:
            yield from self.rest()
        else:
            yield from self._between(canvas, self._motion.then(motion).inverse())
        self._canvas, self._motion = canvas, CameraMotion()
        yield self._renderer.pasted(canvas, live)

    def rest(self) -> Iterator[Picture]:
        """The frames after the last keyframe of a scene."""
        waiting, self._waiting = self._waiting, []
        for live, motion in waiting:
            yield self._renderer.frame(live, [Painted(self._last, motion)])

    def _between(self, following: Picture, back: CameraMotion) -> Iterator[Picture]:
        waiting, self._waiting = self._waiting, []
        for number, (live, motion) in enumerate(waiting, 1):
            weight = number / (len(waiting) + 1)
            sources = [Painted(self._last, motion, 1 - weight), Painted(following, back.then(motion), weight)]
            yield self._renderer.frame(live, sources)

    @property
    def _last(self) -> Picture:
        assert self._canvas is not None
        return self._canvas


class _Live:
    """Frames made at once from the keyframes so far, a new one fading in over the one before."""

    def __init__(self, renderer: BorderRenderer, fade_frames: int) -> None:
        self._renderer, self._fade_frames = renderer, fade_frames
        self._sources: list[Painted] = []  # the last canvas, and the one before while it is still to be seen
        self._since = 0

    @property
    def has_canvas(self) -> bool:
        return bool(self._sources)

    def frame(self, live: Picture, motion: CameraMotion) -> Iterator[Picture]:
        self._since += 1
        self._sources = [Painted(each.canvas, each.motion.then(motion)) for each in self._sources]
        yield self._shown(live)

    def keyframe(self, live: Picture, canvas: Picture, motion: CameraMotion | None) -> Iterator[Picture]:
        kept = [Painted(each.canvas, each.motion.then(motion)) for each in self._sources[:1]] if motion else []
        self._sources, self._since = [Painted(canvas, CameraMotion()), *kept], 0
        yield self._shown(live)

    def rest(self) -> Iterator[Picture]:
        yield from ()

    def _shown(self, live: Picture) -> Picture:
        weight = (self._since + 1) / (self._fade_frames + 1)
        if weight >= 1:
            self._sources = self._sources[:1]
        if len(self._sources) == 1:
            return self._renderer.frame(live, self._sources)
        new, old = self._sources
        faded = [Painted(new.canvas, new.motion, weight), Painted(old.canvas, old.motion, 1 - weight)]
        return self._renderer.frame(live, faded)
