"""Video in: the frames of a file as uint8 RGB at a constant rate, one at a time, whatever state the file is in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingPackageError, UserError
from .geometry import MAX_FPS
from .images import MAX_MEGAPIXELS
from .shapes import Size
from .video import MIN_FPS

Picture = NDArray[np.uint8]

# FFmpeg's names of containers that hold their video themselves; playlists, which name other files, are not among them.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "flv", "asf", "ogg", "gif",
    "mxf", "ivf", "yuv4mpegpipe", "h264", "hevc", "obu", "av1",
)  # fmt: skip
MAX_HOLD_SECONDS = 600  # a longer gap between two frames is taken for a wrong timestamp, and left out
MAX_DURATION_SECONDS = 1e7  # more is no duration
MAX_BROKEN_IN_A_ROW = 10_000  # packets that give no frame, after which the rest of the file is given up
HD_ROWS = 720  # from here on, colours that say nothing of themselves are BT.709, below BT.601, as players have it
_MAX_PIXELS = MAX_MEGAPIXELS * 1_000_000
_LIMITS = {"max_pixels": str(_MAX_PIXELS)}  # what a decoder may be asked for


class DamagedVideoWarning(UserWarning):
    """Part of a video could not be decoded or timed; the frame before it was shown instead."""


class VideoReader:
    """The frames of a video file at a constant rate, uint8 RGB (height, width, 3); a context manager.

    `size`, (width, height), is what each frame is cut (centred) and scaled to fill; None keeps the video's own.
    `fps` is the rate of what comes out, by default the file's own; it ends after `seconds`. Timestamps are kept as
    nearly as that allows: a frame is shown from the output frame nearest to its time until the next one's, so that a
    variable frame rate becomes a constant one, longer frames are repeated, and shorter ones left out. Time begins with
    the first frame that can be decoded, at `start_seconds` of the file. The display matrix (phones) and the pixels'
    aspect ratio are applied; HDR is taken as it is. Memory does not grow with the length.

    Frames that are broken are counted in `broken_count`, and the one before is shown for longer; a
    DamagedVideoWarning at the end says how many there were.

    Raises UserError for a file that is missing, no video, without a frame that can be decoded, or over
    MAX_MEGAPIXELS (which the decoder checks before it takes memory); MissingPackageError without PyAV.
    """

    def __init__(
        self, path: str | Path, size: Size | None = None, fps: float | None = None, seconds: float | None = None
    ) -> None:
        if size is not None and min(size) < 1:
            raise ValueError(f"size must be at least 1x1, got {size}")
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(f"--seconds must be above 0, got {seconds}", hint="leave it out for all of the video")
        self.path = Path(path)
        self._container = open_container(self.path)
        try:
            self._stream = _video_stream(self._container, self.path)
            self.fps = _rate(self._stream, fps)
        except BaseException:
            self._container.close()
            raise
        self._size = size
        self._limit = math.inf if seconds is None else max(1, round(seconds * self.fps))
        self._reformatter = _reformatter()
        self._orientation: tuple[bool, bool, bool] | None = None
        self.start_seconds = 0.0
        self.broken_count = 0
        self.mistimed_count = 0

    @property
    def expected_count(self) -> int | None:
        """How many frames will come, as the file says; None if it does not."""
        stream, container = self._stream, self._container
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / 1e6
        else:
            return None
        count = max(1, round(seconds * self.fps)) if 0 < seconds < MAX_DURATION_SECONDS else None
        return None if count is None else int(min(count, self._limit))

    def __iter__(self) -> Iterator[Picture]:
        """All frames; may be called once."""
        index, until, held, picture = 0, 0, None, None
        for frame, begin, end in self._in_time():
            while held is not None and index < min(begin, self._limit):
                picture = self._picture(held) if picture is None else picture
                yield picture
                index += 1
            if index >= self._limit:
                break
            until, held, picture = end, frame, None
        if held is None:
            raise UserError(f"the video {self.path} holds no frame that can be decoded", hint="export it again")
        while index < min(until, self._limit):
            picture = self._picture(held) if picture is None else picture
            yield picture
            index += 1
        self._warn()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_time(self) -> Iterator[tuple[Any, int, int]]:
        """Frames with the output frames [begin, end) that they are shown in, if no other comes before the end."""
        interval = float(1 / self.fps)
        first: float | None = None
        last, offset, is_astray = 0.0, 0.0, False
        for frame in self._decoded():
            time = frame.pts * frame.time_base if frame.pts is not None and frame.time_base else None
            if first is None:
                first = self.start_seconds = float(time or 0)
                now = 0.0
            else:
                now = last + interval if time is None else float(time) - first + offset
                if not last < now <= last + MAX_HOLD_SECONDS:
                    self.mistimed_count += 1
                    is_first = not is_astray
                    is_astray = True
                    if now <= last and is_first:
                        continue
                    offset += last + interval - now
                    now = last + interval
            last, is_astray = now, False
            lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else interval
            begin = self._nearest(now)
            yield frame, begin, max(begin + 1, self._nearest(now + min(lasts, MAX_HOLD_SECONDS)))

    def _nearest(self, seconds: float) -> int:
        return math.ceil(seconds * self.fps - 0.5)  # a tie is the earlier one: that keeps the length of halved rates

    def _decoded(self) -> Iterator[Any]:
        """The frames that can be decoded, in order."""
        import av

        broken_in_a_row = 0
        packets = self._container.demux(self._stream)
        while broken_in_a_row < MAX_BROKEN_IN_A_ROW:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except MemoryError:
                raise
            except (av.error.FFmpegError, ValueError):
                self.broken_count += 1
                broken_in_a_row += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.broken_count += 1
                else:
                    broken_in_a_row = 0
                    yield frame

    def _picture(self, frame: Any) -> Picture:
        """A frame as RGB: scaled to cover the size, turned upright, and cut."""
        if self._orientation is None:  # the file's; a frame's side data refers to the frame, which would stay for long
            self._orientation = orientation(_display_matrix(frame))
        transposed, flip_rows, flip_columns = self._orientation
        ratio = _pixel_aspect(self._stream)
        width, height = max(1, round(frame.width * ratio)), frame.height
        wanted = self._size or ((height, width) if transposed else (width, height))
        across, down = reversed(wanted) if transposed else wanted
        factor = max(across / width, down / height)
        scaled = max(across, round(width * factor)), max(down, round(height * factor))
        rgb = self._reformatter.reformat(
            frame, *scaled, format="rgb24", src_colorspace=_matrix_of(frame), interpolation="BICUBIC"
        )
        pixels: Picture = rgb.to_ndarray()
        top, left = (scaled[1] - down) // 2, (scaled[0] - across) // 2
        pixels = pixels[top : top + down, left : left + across]
        if transposed:
            pixels = pixels.transpose(1, 0, 2)
        return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])

    def _warn(self) -> None:
        found = [
            f"{count} {what}"
            for count, what in (
                (self.broken_count, "could not be decoded"),
                (self.mistimed_count, "had no possible time"),
            )
            if count
        ]
        if found:
            message = f"of the frames of {self.path}, {' and '.join(found)}; those before them are shown instead"
            warnings.warn(message, DamagedVideoWarning, stacklevel=3)


def _reformatter() -> Any:
    """One for all frames, since each holds memory of its own."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def open_container(path: Path) -> Any:
    """The opened file, which no other file or address that it may name is read for; raises as VideoReader does."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("av", "video", "reading a video") from error
    if not path.is_file():
        found = "it is not a regular file" if path.exists() else "there is no such file"
        raise UserError(f"cannot read the video {path}: {found}", hint="check the path")
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS), **_LIMITS}
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (PermissionError, av.error.PermissionError) as error:
        raise UserError(f"cannot read the video {path}: permission denied", hint="check its rights") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(
            f"{path} is not a video of a kind that outzoom reads",
            hint="it may be damaged or incomplete; or convert it to .mp4",
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    """The first stream of moving pictures, ready to decode; a cover picture is none."""
    import av

    cover = av.stream.Disposition.attached_pic
    stream = next((each for each in container.streams.video if not each.disposition & cover), None)
    if stream is None:
        raise UserError(f"there is no video in {path}", hint="--image takes pictures")
    context = stream.codec_context
    if context is None:
        raise UserError(f"this PyAV cannot decode the video in {path}", hint="convert it to H.264 in an .mp4")
    if context.width * context.height > _MAX_PIXELS:
        raise UserError(
            f"the frames of {path} are {context.width}x{context.height}, more than {MAX_MEGAPIXELS} megapixels",
            hint="make a smaller copy of it first",
        )
    context.options = dict(_LIMITS)  # frames may differ from what the file says
    context.thread_type = "AUTO"
    return stream


def _rate(stream: Any, fps: float | None) -> Fraction:
    """What is asked for, or the mean rate; FFmpeg's guess of the nominal rate where that is about the same."""
    if fps is not None:
        if not MIN_FPS <= fps <= MAX_FPS:
            raise UserError(f"--fps must be {MIN_FPS} to {MAX_FPS}, got {fps}", hint="try --fps 30")
        return Fraction(fps).limit_denominator(1001)
    mean, guessed = stream.average_rate, stream.guessed_rate
    rate = mean or guessed or Fraction(25)
    if guessed and abs(guessed / rate - 1) < 0.05:
        rate = guessed
    return Fraction(min(max(rate, Fraction(1, 100)), Fraction(MAX_FPS))).limit_denominator(1001)


def _pixel_aspect(stream: Any) -> Fraction:
    """A pixel's width to its height; 1 where that is unknown or absurd."""
    ratio = stream.codec_context.sample_aspect_ratio or getattr(stream, "sample_aspect_ratio", None)
    return Fraction(ratio) if ratio and Fraction(1, 4) <= ratio <= 4 else Fraction(1)


def _display_matrix(frame: Any) -> NDArray[np.int32]:
    """The frame's display matrix, (3, 3), or the identity."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            numbers = np.frombuffer(bytes(data), np.int32)
            if numbers.size == 9:
                return numbers.reshape(3, 3)
    return np.diag([1 << 16, 1 << 16, 1 << 30]).astype(np.int32)


def orientation(matrix: NDArray[np.int32]) -> tuple[bool, bool, bool]:
    """How a display matrix turns pixels, to the nearest quarter turn: transposed, then rows, then columns reversed.

    `matrix` is (3, 3), of which a point (x, y) becomes (x, y) @ matrix[:2, :2]. Source: FFmpeg, libavutil/display.h.
    """
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def _matrix_of(frame: Any) -> int | None:
    """Which matrix made its YCbCr: 1 is BT.709, 5 is BT.601; None lets FFmpeg know."""
    unspecified, bt709, bt601 = 2, 1, 5
    if frame.colorspace == unspecified:
        return bt709 if frame.height >= HD_ROWS else bt601
    return bt709 if frame.colorspace == bt709 else None
