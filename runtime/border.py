"""The border around a video's live frame: painted on some frames, carried to the others.

A painted canvas shows the live frame of its time in its centre and what was painted around it. For another frame it
is moved as the camera moved, its colours are matched to the live frame just inside the seam, and the live frame is
pasted over it. Two canvases, the last and the next, are blended, each as far as it reaches.

Pictures are uint8 RGB (height, width, 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .camera import CameraMotion, load_opencv
from .errors import UserError
from .geometry import MAX_SCALE, MIN_SCALE
from .shapes import Size
from .video_reader import Picture

if TYPE_CHECKING:
    from .memory import Known

STILL_PX = 0.05  # a canvas that would move by less is left where it is, and stays sharp
CELL_PX = 8  # colours are matched on means over squares of that
RING_CELLS = 2  # just inside the seam
SPREAD_CELLS = 5.0  # sigma of the Gaussian that carries a difference of colour outwards
REACH_FADE_PX = 8.0  # at its rim a moved canvas gives way to the other one over that
NO_REACH = 1e-3  # what a canvas counts where it does not reach: there it shows its mirror image
FEATHER_FRACTION = 1 / 48  # of the live frame's shorter side
TYPICAL_WEIGHT = 1e-3  # of the ring's median, beside what the Gaussian brings
OUTLIER_LEVELS = 12.0  # a cell that differs by more from the ring's median counts for less


@dataclass(frozen=True)
class Painted:
    """A canvas, how the camera moved from its frame to the present one, and how much it counts."""

    canvas: Picture
    motion: CameraMotion
    weight: float = 1.0


@dataclass(frozen=True)
class Layout:
    """Where the live frame lies: `live` pixels in the centre of `size`, (width, height), fading over `feather_px`."""

    size: Size
    live: Size
    feather_px: float

    @cached_property
    def corner(self) -> tuple[int, int]:
        """The live frame's left and top pixel."""
        return (self.size[0] - self.live[0]) // 2, (self.size[1] - self.live[1]) // 2

    @cached_property
    def centre(self) -> tuple[slice, slice]:
        """The live frame's rows and columns."""
        (left, top), (width, height) = self.corner, self.live
        return slice(top, top + height), slice(left, left + width)

    @cached_property
    def alpha(self) -> NDArray[np.float32]:
        """How much the live frame counts, (height, width, 1) of its own pixels: 0 to 1 over the feather."""
        return self._rising(0.0)

    @cached_property
    def inner_alpha(self) -> NDArray[np.float32]:
        """The same, but from where `alpha` is 1 on."""
        return self._rising(self.feather_px)

    def _rising(self, from_px: float) -> NDArray[np.float32]:
        across, down = (np.minimum(np.arange(length) + 0.5, length - np.arange(length) - 0.5) for length in self.live)
        depth_px = np.minimum.outer(down, across)
        alpha: NDArray[np.float32] = np.clip((depth_px - from_px) / max(self.feather_px, 0.5), 0, 1).astype(np.float32)
        return alpha[..., None]

    @cached_property
    def strips(self) -> list[tuple[slice, slice]]:
        """Rows and columns of four rectangles that cover all that the live frame does not hide, and its edge."""
        (width, height), inset = self.size, RING_CELLS * CELL_PX
        left, top = (min(side + inset, length // 2) for side, length in zip(self.corner, self.size, strict=True))
        right, bottom = width - left, height - top
        strips = [
            (slice(0, top), slice(0, width)),
            (slice(bottom, height), slice(0, width)),
            (slice(top, bottom), slice(0, left)),
            (slice(top, bottom), slice(right, width)),
        ]
        return [(rows, columns) for rows, columns in strips if rows.start < rows.stop and columns.start < columns.stop]


def layout_for(size: Size, scale: float) -> Layout:
    """The layout in which a live frame is shrunk to about `scale`, its edge on the grid of latents.

    Raises UserError for a scale that leaves too little to paint or to show.
    """
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise UserError(
            f"--scale must be {MIN_SCALE} to {MAX_SCALE}, got {scale:g}", hint="0.75 leaves an eighth on each side"
        )
    width, height = (
        min(max(length - 2 * CELL_PX * round(length * (1 - scale) / (2 * CELL_PX)), 2 * CELL_PX), length - 2 * CELL_PX)
        for length in size
    )
    return Layout(size, (width, height), min(width, height) * FEATHER_FRACTION)


class BorderRenderer:
    """Composes frames in a layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._cv2 = load_opencv()
        width, height = layout.size
        across, down = (
            np.minimum(np.arange(length) + 1.0, length - np.arange(length)) / REACH_FADE_PX
            for length in (width, height)
        )
        self._reach = np.clip(np.minimum.outer(down, across), 0, 1).astype(np.float32)
        self._ring = _ring(layout)

    def canvas(self, painted: Picture, live: Picture, known: Known | None = None) -> Picture:
        """What was painted, its colours matched to the live frame, with what is known over it.

        At the live frame's edge it shows what was painted in its place, and the live frame itself only farther in: so
        a live frame pasted over it, this one or a later one, always has something else to fade into.
        """
        canvas = self._coloured(painted.copy(), live)
        if known is not None:
            alpha = known.alpha[..., None].copy()
            alpha[self.layout.centre] = 0
            canvas = np.rint(known.canvas * alpha + canvas * (1 - alpha)).astype(np.uint8)
        inner = self.layout.inner_alpha
        canvas[self.layout.centre] = np.rint(live * inner + canvas[self.layout.centre] * (1 - inner))
        return canvas

    def pasted(self, canvas: Picture, live: Picture) -> Picture:
        """A canvas with the live frame in its centre."""
        frame = canvas.copy()
        frame[self.layout.centre] = self._faded(canvas[self.layout.centre], live)
        return frame

    def frame(self, live: Picture, sources: Sequence[Painted]) -> Picture:
        """The live frame with the border of the canvases around it, each moved to the present."""
        border = np.empty((self.layout.size[1], self.layout.size[0], 3), np.uint8)
        for strip in self.layout.strips:
            border[strip] = self._strip(strip, sources)
        border = self._coloured(border, live)
        border[self.layout.centre] = self._faded(border[self.layout.centre], live)
        return border

    def _strip(self, strip: tuple[slice, slice], sources: Sequence[Painted]) -> Picture:
        cv2, shown = self._cv2, sorted((source for source in sources if source.weight > 0), key=lambda one: -one.weight)
        how = [cv2.INTER_CUBIC, cv2.INTER_LINEAR]  # what counts for less may be less sharp, which is faster
        moved = [self._moved(source, strip, how[index]) for index, source in enumerate(shown)]
        if len(moved) == 1:
            return moved[0]
        return np.asarray(self._cv2.blendLinear(*moved, *(self._counts(source, strip) for source in shown)))

    def _moved(self, source: Painted, strip: tuple[slice, slice], interpolation: int) -> Picture:
        """A strip of a moved canvas."""
        if self._is_still(source):
            return source.canvas[strip]
        cv2 = self._cv2
        flags = cv2.WARP_INVERSE_MAP | interpolation
        return np.asarray(
            cv2.warpAffine(source.canvas, *self._back(source, strip), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        )

    def _counts(self, source: Painted, strip: tuple[slice, slice]) -> NDArray[np.float32]:
        """How much each pixel of a strip of a moved canvas counts."""
        reach = self._reach[strip]
        if not self._is_still(source):
            flags = self._cv2.WARP_INVERSE_MAP | self._cv2.INTER_LINEAR
            reach = self._cv2.warpAffine(self._reach, *self._back(source, strip), flags=flags) + np.float32(NO_REACH)
        counts: NDArray[np.float32] = np.multiply(reach, source.weight, dtype=np.float32)
        return counts

    def _is_still(self, source: Painted) -> bool:
        return source.motion.reach_px(*self.layout.size) < STILL_PX

    def _back(self, source: Painted, strip: tuple[slice, slice]) -> tuple[NDArray[np.float64], Size]:
        """The matrix from a strip's pixels to the canvas's, and the strip's size."""
        rows, columns = strip
        matrix = source.motion.inverse().matrix(*self.layout.size)
        matrix[:, 2] += matrix[:, :2] @ [columns.start, rows.start]
        return matrix, (columns.stop - columns.start, rows.stop - rows.start)

    def _coloured(self, border: Picture, live: Picture) -> Picture:
        """`border`, which is changed, with the colours that fit `live`."""
        layout, cv2 = self.layout, self._cv2
        field = self._colour_field(border[layout.centre], live)
        field = cv2.resize(field, layout.size, interpolation=cv2.INTER_LINEAR)
        for strip in layout.strips:
            border[strip] = cv2.add(border[strip], field[strip], dtype=cv2.CV_8U)
        return border

    def _faded(self, below: Picture, live: Picture) -> Picture:
        faded, edge = live.copy(), math.ceil(self.layout.feather_px)
        height, width = live.shape[:2]
        for strip in (
            (slice(0, edge), slice(0, width)),
            (slice(height - edge, height), slice(0, width)),
            (slice(edge, height - edge), slice(0, edge)),
            (slice(edge, height - edge), slice(width - edge, width)),
        ):
            alpha = self.layout.alpha[strip]
            faded[strip] = np.rint(live[strip] * alpha + below[strip] * (1 - alpha))
        return faded

    def _colour_field(self, inside: Picture, live: Picture) -> NDArray[np.float32]:
        """What to add to the border, in cells, (height / CELL_PX, width / CELL_PX, 3).

        The differences between the live frame and what the border shows in its place, in the ring inside the seam,
        carried outwards by a normalized convolution, and far from the seam their median.
        """
        cv2, layout = self._cv2, self.layout
        cells = (layout.live[0] // CELL_PX, layout.live[1] // CELL_PX)
        means = [cv2.resize(each, cells, interpolation=cv2.INTER_AREA).astype(np.float32) for each in (live, inside)]
        difference = means[0] - means[1]
        typical = np.median(difference[self._ring], axis=0)
        off = np.abs(difference - typical).max(axis=2) / OUTLIER_LEVELS
        weight = np.where(self._ring, 1 / (1 + off**2), 0).astype(np.float32)
        left, top = (side // CELL_PX for side in layout.corner)
        pads = {"top": top, "bottom": top, "left": left, "right": left, "borderType": cv2.BORDER_CONSTANT}
        spread = [
            cv2.GaussianBlur(cv2.copyMakeBorder(each, **pads), (0, 0), SPREAD_CELLS, borderType=cv2.BORDER_CONSTANT)
            for each in (difference * weight[..., None], weight)
        ]
        few = np.float32(TYPICAL_WEIGHT)
        field: NDArray[np.float32] = (spread[0] + few * typical) / (spread[1][..., None] + few)
        return field


def _ring(layout: Layout) -> NDArray[np.bool_]:
    """The cells just inside the seam, (rows, columns) of the live frame's cells."""
    columns, rows = (length // CELL_PX for length in layout.live)
    ring = np.ones((rows, columns), np.bool_)
    ring[RING_CELLS : rows - RING_CELLS, RING_CELLS : columns - RING_CELLS] = False
    return ring
