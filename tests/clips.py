"""Small video files with what real ones have: sound, a turn of the phone, odd timestamps, broken frames."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
SAMPLE_RATE = 48_000


def numbered(index: int, width: int = 64, height: int = 48) -> Picture:
    """A grey that says which frame it is, 7 levels apart from the next, with a bright upper left quarter."""
    picture = np.full((height, width, 3), 16 + 7 * index, np.uint8)
    picture[: height // 2, : width // 2] = 250
    return picture


def number_of(picture: Picture) -> int:
    """Which `numbered` frame it is, by its lower right quarter."""
    height, width = picture.shape[:2]
    return round((float(picture[height * 5 // 8 :, width * 5 // 8 :].mean()) - 16) / 7)


def write_clip(
    path: Path,
    frames: Iterable[Picture],
    codec: str = "libx264",
    fps: int = 25,
    pts: Sequence[int] | None = None,
    audio: str | None = None,
    audio_seconds: float = 0.0,
    options: dict[str, str] | None = None,
    audio_first: bool = False,
) -> Path:
    """Write frames, the one at `i` at `pts[i]` milliseconds (by default at a constant rate), and a 440 Hz tone."""
    import av

    with av.open(str(path), "w") as container:
        stream = None
        sound = container.add_stream(audio, rate=SAMPLE_RATE, layout="stereo") if audio else None
        for index, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=fps, options={"bf": "0", "b": "1000000", **(options or {})})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                if sound is not None and audio_first:
                    _write_tone(container, sound, audio_seconds)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if pts is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
                picture.pts, picture.time_base = pts[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))
        if sound is not None and not audio_first:
            _write_tone(container, sound, audio_seconds)
    return path


def _write_tone(container, sound, seconds: float) -> None:
    import av

    count = round(seconds * SAMPLE_RATE)
    for start in range(0, count, 960):
        time = np.arange(start, min(start + 960, count)) / SAMPLE_RATE
        tone = np.rint(12_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone.repeat(2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        container.mux(sound.encode(frame))
    container.mux(sound.encode(None))


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the display matrix of an .mp4, as phones do: (x, y) is shown at (a x + c y, b x + d y)."""
    data, one, at = bytearray(path.read_bytes()), 1 << 16, 0
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    while (at := data.find(b"tkhd", at) + 4) > 3:
        begin = at + 40  # version 0: the matrix lies 40 bytes after the box's name, the width after it
        if any(data[begin + 36 : begin + 40]):  # sound has none
            data[begin : begin + 36] = matrix
    path.write_bytes(bytes(data))


def break_frame(path: Path, index: int) -> None:
    """Overwrite what a frame holds, but not where it is said to be."""
    import av

    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[index]
    data = bytearray(path.read_bytes())
    data[position + 8 : position + size] = bytes((7 * byte + 13) % 256 for byte in data[position + 8 : position + size])
    path.write_bytes(bytes(data))
