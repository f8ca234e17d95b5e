"""The endless zoom-out: paint a keyframe around the last one, show the frames between, and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from . import geometry
from .bundle import Bundle, open_manifest
from .course import Course, render
from .errors import UserError
from .inpainting import Inpainting, OpenEngine, Painting, Picture
from .shapes import Size

FEATHER_FRACTION = 1 / 24  # of the picture's shorter side: how far a keyframe fades into what is painted around it
MAX_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Motion:
    """How the camera moves: `zoom_rate` is by how much the view widens per second, at a constant apparent speed."""

    seconds: float = 4.0
    fps: float = 30.0
    zoom_rate: float = 2.0
    keyframe_every: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= MAX_SECONDS:
            raise UserError(f"seconds must be above 0 and at most {MAX_SECONDS:g}, got {self.seconds}")
        geometry.keyframe_scale(self.zoom_rate, self.keyframe_every, self.fps)

    @property
    def scale(self) -> float:
        """By how much a keyframe appears shrunk in the next."""
        return geometry.keyframe_scale(self.zoom_rate, self.keyframe_every, self.fps)

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return max(1, round(self.seconds * self.fps))

    @property
    def painted_count(self) -> int:
        """Number of keyframes to paint; the given picture is the first, and the last frame may be one."""
        return -(-(self.frame_count - 1) // self.keyframe_every)


class Zoom:
    """An opened bundle, ready to zoom out of pictures.

    >>> zoom = open_bundle("out/openvino-cpu-fp16")           # doctest: +SKIP
    >>> for frame in zoom.frames(picture, "a coral reef"):    # doctest: +SKIP
    ...     show(frame)                                       # uint8 (height, width, 3), RGB
    """

    def __init__(
        self,
        bundle: Bundle,
        size: Size | None = None,
        open_engine: OpenEngine | None = None,
        memory_limit_bytes: int | None = None,
        cache: Path | None = None,
        devices: Mapping[str, str] = MappingProxyType({}),
        vae_tile: Size | None = None,
    ) -> None:
        """The arguments are those of Inpainting."""
        self.bundle = bundle
        self.inpainting = Inpainting(bundle, size, open_engine, memory_limit_bytes, cache, devices, vae_tile)
        self.size = self.inpainting.size

    @property
    def feather_px(self) -> float:
        """Over how many pixels a keyframe fades into what is painted around it."""
        return min(self.size) * FEATHER_FRACTION

    def keyframes(
        self,
        image: Picture,
        prompt: str,
        scale: float,
        painting: Painting | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Picture]:
        """`image`, then without end pictures that show the one before, shrunk by `scale`, in their centre.

        `image` is uint8 (height, width, 3) of the bundle's size. The known centre is pasted, never repainted.
        """
        painting = painting or Painting()
        self.check_picture(image)
        index = 0
        while True:
            yield image
            index += 1
            image = self.keyframe_around(image, index, prompt, scale, painting, on_step)

    def keyframe_around(
        self,
        image: Picture,
        index: int,
        prompt: str,
        scale: float,
        painting: Painting,
        on_step: Callable[[], None] | None = None,
    ) -> Picture:
        """The keyframe number `index`, that shows the one before it, `image`, shrunk by `scale` in its centre."""
        shrunk = geometry.paste_centered(np.zeros_like(image), image, scale)
        mask = geometry.outside_mask(self.size, scale)
        painted = self.inpainting.paint(shrunk, mask, prompt, painting, index, on_step=on_step)
        return geometry.paste_centered(painted, image, scale, self.feather_px)

    def check_picture(self, image: Picture) -> None:
        """Raises UserError for a picture that is not of the bundle's size."""
        if image.shape != (self.size[1], self.size[0], 3):
            raise UserError(
                f"the picture has the shape {image.shape}, the bundle paints {self.size[0]}x{self.size[1]}",
                hint="outzoom.runtime.load_image(file, size=zoom.size) cuts and scales a picture",
            )

    def frames(
        self,
        image: Picture,
        prompt: str,
        motion: Motion | None = None,
        painting: Painting | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Picture]:
        """The frames of a zoom-out, uint8 (height, width, 3) RGB; the first is `image` itself.

        A keyframe is painted when the first frame that shows it is asked for, and two are held at a time.
        """
        motion = motion or Motion()
        keyframes = self.keyframes(image, prompt, motion.scale, painting, on_step)
        return render(Course.of(motion), lambda _: next(keyframes), self.feather_px)

    def close(self) -> None:
        """Unload the engines."""
        self.inpainting.close()

    def __enter__(self) -> Zoom:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_bundle(
    path: Path | str,
    verify: bool = True,
    size: Size | None = None,
    memory_limit_bytes: int | None = None,
    cache: Path | None = None,
    devices: Mapping[str, str] = MappingProxyType({}),
    vae_tile: Size | None = None,
) -> Zoom:
    """Open and check the bundle in a directory, for one of its sizes, (width, height), by default its first.

    With a limit, engines are opened in turn as far as it asks for that. `cache` is a folder to keep them in as they are
    opened, such as `cache_folder()`: the next time it is quick. `devices` by component: see devices.py. With `vae_tile`
    the VAE works on tiles of that size, another of the bundle's.
    Raises BundleError that says what is wrong with it, and UserError for a size that it does not paint.
    """
    return Zoom(
        open_manifest(path, verify), size, memory_limit_bytes=memory_limit_bytes, cache=cache, devices=devices,
        vae_tile=vae_tile,
    )  # fmt: skip
