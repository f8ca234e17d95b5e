"""Video out: frames are encoded as they come, and the file appears when it is complete."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingPackageError, OutzoomError, UserError, unknown_name
from .files import atomic_file
from .geometry import MAX_FPS

if TYPE_CHECKING:
    from .audio import AudioTrack

# By file ending: encoders in order of preference. FFmpeg builds differ in which they hold.
ENCODERS = {
    ".mp4": ("libx264", "libopenh264", "mpeg4"),
    ".mkv": ("libx264", "libopenh264", "mpeg4"),
    ".webm": ("libvpx-vp9", "libvpx"),
}
# Encoders that take a constant quality; the others get a bit rate.
QUALITY_OPTIONS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libvpx-vp9": {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
}
BITS_PER_PIXEL = 0.25
MIN_FPS = 0.01


class VideoWriter:
    """Writes uint8 RGB frames (height, width, 3) to an .mp4, .mkv or .webm file, as a context manager.

    H.264 (VP9 in .webm), 4:2:0, BT.709; memory does not grow with the length. The file has its name only once
    the block has ended well: an exception or Ctrl-C leaves what was there before. 4:2:0 needs even sizes, so
    an odd width or height is filled up with a copy of the last column or row. `audio` is written beside the frames,
    as much of it as they last; from `audio_start()` seconds of its file on, asked for once a frame is there.

    Raises UserError for an ending or value it cannot do, MissingPackageError without PyAV, OutzoomError for a
    full disk or a video without frames.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float | Fraction,
        audio: AudioTrack | None = None,
        audio_start: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.path = Path(path)
        self._audio, self._audio_start = audio, audio_start
        suffix = self.path.suffix.lower()
        if suffix not in ENCODERS:
            raise unknown_name("video ending", suffix or self.path.name, ENCODERS)
        if width < 1 or height < 1:
            raise UserError(f"a video needs a size of at least 1x1, got {width}x{height}", hint="check --size")
        if not MIN_FPS <= fps <= MAX_FPS:
            raise UserError(f"--fps must be {MIN_FPS} to {MAX_FPS}, got {fps}", hint="try --fps 30")
        try:
            import av
        except ImportError as error:
            raise MissingPackageError("av", "video", "writing a video") from error
        self.width, self.height = width, height
        self.fps = Fraction(fps).limit_denominator(1001)
        self.count = 0
        self.encoder = next((name for name in ENCODERS[suffix] if name in av.codecs_available), "")
        if not self.encoder:
            raise OutzoomError(
                f"this PyAV has no encoder for {suffix}: none of {', '.join(ENCODERS[suffix])}",
                hint="pip install --force-reinstall av",
            )

    @property
    def duration_seconds(self) -> float:
        """The length of the frames written so far."""
        return float(self.count / self.fps)

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame (height, width, 3) uint8 RGB. Raises ValueError for another shape or type."""
        import av

        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"frame must be uint8 ({self.height}, {self.width}, 3), got {frame.dtype} {frame.shape}")
        if self.width % 2 or self.height % 2:
            frame = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), "edge")
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = self._reformatter.reformat(picture, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts, picture.time_base = self.count, 1 / self.fps
        self._container.mux(self._stream.encode(picture))
        self.count += 1
        if self._audio is not None:
            self._audio.write(self._container, self._audio_start(), self.duration_seconds)

    def __enter__(self) -> VideoWriter:
        import av
        from av.video.reformatter import VideoReformatter

        self._reformatter: Any = VideoReformatter()  # one for all frames, since each sets up tables of its own
        suffix = self.path.suffix.lower()
        with ExitStack() as stack:
            partial = stack.enter_context(atomic_file(self.path))
            options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
            self._container: Any = stack.enter_context(av.open(str(partial), "w", options=options))
            self._stream = self._open_stream()
            if self._audio is not None:
                self._audio.attach(self._container, suffix)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _open_stream(self) -> Any:
        quality = QUALITY_OPTIONS.get(self.encoder)
        stream = self._container.add_stream(self.encoder, rate=self.fps, options=quality or {})
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range, context.colorspace = 1, 1  # limited range; BT.709, as are the next two
        context.color_primaries, context.color_trc = 1, 1
        if quality is None:
            context.bit_rate = round(stream.width * stream.height * self.fps * BITS_PER_PIXEL)
        return stream

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self.count == 0:
            raise OutzoomError(f"no frame was written to {self.path}", hint="ask for more --seconds")
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.finish(self._container)
