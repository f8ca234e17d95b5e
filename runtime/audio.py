"""The sound of a video, carried to another file: copied as it is where that file can hold it, else encoded again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutzoomError
from .video_reader import open_container

# What players take in a container is less than what FFmpeg writes into it. Matroska is there for everything.
COPIED = {".mp4": {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}, ".webm": {"opus", "vorbis"}}
ENCODERS = {".mp4": ("aac",), ".mkv": ("aac",), ".webm": ("libopus", "libvorbis", "opus")}
ENCODED_RATES = {"libopus": 48_000, "opus": 48_000}  # others take the sound's own
LEAD_SECONDS = 0.05  # a decoder needs a packet or two before the first that is heard
HINT = "--no-audio leaves the sound out"


class AudioWarning(UserWarning):
    """Sound is missing in what was written, or part of it."""


class AudioTrack:
    """The first sound track of a file, whose packets go into a video as its frames do; a context manager.

    It opens the file for itself, so that memory stays flat however far apart the file holds sound and pictures. The
    sound is cut to what is written, from `start_seconds` of the file on; other tracks are left out.
    `how` says "copied", "encoded as ...", or "none".
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._container = open_container(self.path)
        self._stream: Any = next(iter(self._container.streams.audio), None)
        self._output: Any = None
        self._encoder: Any = None
        self._pending: Iterator[tuple[float, Any]] = iter(())
        self._next: tuple[float, Any] | None = None
        self.broken_count = 0
        self.how = "none"

    def attach(self, container: Any, suffix: str) -> None:
        """Add the track to an opened output, before its first frame; without sound nothing happens."""
        import av

        if self._stream is None:
            return
        codec = self._stream.codec_context.codec if self._stream.codec_context else None
        try:
            name = codec.canonical_name if codec else ""
            if name in container.supported_codecs and name in COPIED.get(suffix, {name}):
                self._output = container.add_stream_from_template(self._stream)
                self.how = "copied"
                return
            encoder = next((name for name in ENCODERS[suffix] if name in av.codecs_available), None)
            if codec is None or encoder is None:
                self._leave_out(f"this PyAV cannot {'decode it' if codec is None else f'encode sound for {suffix}'}")
                return
            rate = ENCODED_RATES.get(encoder, self._stream.codec_context.sample_rate)
            self._output = self._encoder = container.add_stream(encoder, rate=rate)
            self._encoder.layout = "mono" if self._stream.codec_context.channels == 1 else "stereo"
            self.how = f"encoded as {encoder}"
        except (av.error.FFmpegError, ValueError) as error:
            raise OutzoomError(f"the sound of {self.path} cannot be written: {error}", hint=HINT) from error

    def write(self, container: Any, start_seconds: float, until_seconds: float) -> None:
        """Write what is heard before `until_seconds`, counted from `start_seconds` of the file, and not yet written."""
        if self._output is None:
            return
        if self._next is None:
            source = self._frames() if self._encoder is not None else self._packets()
            self._pending = self._from(source, start_seconds)
            self._next = next(self._pending, (float("inf"), None))
        while self._next[0] < until_seconds:
            self._write_one(container, self._next[1])
            self._next = next(self._pending, (float("inf"), None))

    def finish(self, container: Any) -> None:
        """Write what the encoder holds back; a warning says how much of the sound was broken."""
        if self._encoder is not None:
            container.mux(self._encoder.encode(None))
        if self.broken_count:
            message = f"{self.broken_count} pieces of the sound of {self.path} are broken and were left out"
            warnings.warn(message, AudioWarning, stacklevel=4)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> AudioTrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave_out(self, why: str) -> None:
        warnings.warn(f"the sound of {self.path} is left out: {why}", AudioWarning, stacklevel=4)

    def _write_one(self, container: Any, piece: Any) -> None:
        if self._encoder is not None:
            container.mux(self._encoder.encode(piece))
        else:
            piece.stream = self._output
            container.mux(piece)

    def _from(self, pieces: Iterator[Any], start_seconds: float) -> Iterator[tuple[float, Any]]:
        """Packets or frames with their time in the output, to which their timestamps are set, in order."""
        lead = 0.0 if self._encoder is not None else LEAD_SECONDS
        last = None
        for piece in pieces:
            if piece.pts is None:
                self.broken_count += 1
                continue
            piece.pts -= round(start_seconds / piece.time_base)
            seconds = float(piece.pts * piece.time_base)
            if seconds < -lead:
                continue
            if last is not None and piece.pts <= last:
                self.broken_count += 1
                continue
            last = piece.pts
            if self._encoder is None:
                piece.dts = piece.pts  # sound is stored in the order in which it is heard
            yield seconds, piece

    def _packets(self) -> Iterator[Any]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:  # the file is cut off
                self.broken_count += 1
                return
            if packet is None:
                return
            if packet.is_corrupt:
                self.broken_count += 1
            elif packet.size:
                yield packet

    def _frames(self) -> Iterator[Any]:
        import av

        for packet in self._packets():
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self.broken_count += 1
        yield from self._stream.codec_context.decode(None)
