"""How the command `zoom` zooms: out of a picture, out of a video, or live on a page."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runtime.errors import OutzoomError, UserError, printable
from .terminal import err_console, progress_bars, warn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .runtime import Film, KeyframeFolder, Limits, LiveStatus, LiveZoom, Motion, Painting, Prompts, Surround, Zoom
    from .runtime.live_server import LiveServer


def check_shown(
    out: Path | None, live: str | None, of_films: dict[str, object], has_limits: bool, governor: bool
) -> None:
    """Raises UserError unless the zoom is either written or shown live, with options of that."""
    if live is None and out is None:
        raise UserError("Missing option '--out'", hint="name the video, or show the zoom on a page with --live 8000")
    if live is not None and out is not None:
        raise UserError("--live shows the zoom and writes neither --out nor --strip", hint="leave out one of them")
    for name, value in of_films.items():
        if live is not None and value is not None and value is not False:
            raise UserError(f"{name} is for a zoom that is written, and --live shows one", hint="leave out one of them")
    if has_limits and (live is None or not governor):
        raise UserError("limits are for a live zoom with its governor", hint="add --live 8000, or leave them out")


def only_source(
    image: Path | None, video: Path | None, only_pictures: dict[str, object], only_videos: dict[str, object]
) -> Path:
    """The picture or the video, whichever is given; raises UserError for none or both, or options of the other."""
    if image is not None and video is not None:
        raise UserError("--image and --video do not go together", hint="give the one to zoom out of")
    source = image or video
    if source is None:
        raise UserError("there is nothing to zoom out of", hint="give --image FILE, or --video FILE")
    theirs = only_pictures if video is not None else only_videos
    kind, other = ("--video", "--image") if video is not None else ("--image", "--video")
    for name, value in theirs.items():
        if value is not None and value is not False:
            hints = {"--zoom-rate": "--scale says how far a video is zoomed out"}
            hints |= {"--scale": "--zoom-rate says how fast a picture is zoomed out"}
            raise UserError(f"{name} is for {other}", hint=hints.get(name, f"leave it out with {kind}"))
    return source


def check_strip(strip: Path, source: Path) -> None:
    """Refuse now what would cost the video or the picture once the frames are painted."""
    if strip.suffix.lower() != ".png":
        raise UserError(f"the strip is a PNG file, got '{strip}'", hint=f"try --strip {strip}.png")
    if strip.resolve() == source.resolve():
        raise UserError(f"--strip would replace '{source}'", hint="name another file")


def check_video_out(out: Path, source: Path) -> None:
    """Refuse to replace the video that is read."""
    if out.resolve() == source.resolve():
        raise UserError(f"--out would replace the video '{source}' itself", hint="name another file")


def prompts_of(prompt: str | None, file: Path | None) -> Prompts:
    """The prompts of a zoom; raises UserError when there are none."""
    from .runtime import Prompts, read_prompts

    if file is not None:
        return read_prompts(file, prompt)
    if prompt is None:
        raise UserError("nothing says what to paint", hint="give --prompt TEXT or --prompts FILE")
    return Prompts.always(prompt)


def zoom_live(
    open_zoom: Callable[[], Zoom],
    source: Path,
    address: str,
    prompt: str,
    motion: Motion,
    painted: tuple[str, dict[str, Any]],
    limits: Limits,
    governor: bool,
    seconds: float | None,
) -> LiveStatus:
    """Show a zoom on a page, until its time is over or somebody ends it; `painted` is a preset and what changes it."""
    from .runtime import LiveZoom, load_image, presets_from
    from .runtime.live_server import LiveServer, parse_address

    with LiveServer(*parse_address(address)) as server, open_zoom() as opened:
        paintings = presets_from(painted[0], opened.bundle.manifest, painted[1])
        picture = load_image(source, opened.size)
        return _serve(server, LiveZoom(opened, picture, prompt, paintings, motion, limits, governor), limits, seconds)


def _serve(server: LiveServer, live: LiveZoom, limits: Limits, seconds: float | None) -> LiveStatus:
    """Show a live zoom for so long, or until Ctrl-C; what it did."""
    with live, server.serving(live), suppress(KeyboardInterrupt):
        err_console.print(f"the zoom is on {server.url}; Ctrl-C ends it", highlight=False)
        for option, value, measured in (
            ("--power-budget", limits.power_watts, live.measures_power),
            ("--temperature-limit", limits.temperature_celsius, live.measures_temperature),
        ):
            if value is not None and not measured:
                warn(f"{option} has no effect: this machine does not tell it, or not to this user")
        until = time.monotonic() + (math.inf if seconds is None else seconds)
        while (left := until - time.monotonic()) > 0:
            live.wait(min(left, 3600.0))
    return live.status()


def zoom_picture(
    opened: Zoom,
    source: Path,
    out: Path,
    keyframes: Path | None,
    restart: bool,
    zoom_in: bool,
    *,
    schedule: Prompts,
    motion: Motion,
    painting: Painting,
    end_image: Path | None,
    loop: bool,
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Write the zoom out of a picture; the result, JSON-able, and six frames."""
    from .runtime import Film, load_image, open_keyframes, remove_keyframes

    folder = keyframes or out.parent / f"{out.name if len(os.fsencode(out.name)) < 240 else out.name[-50:]}.keyframes"
    end = None if end_image is None else load_image(end_image, opened.size)
    film = Film(load_image(source, opened.size), schedule, motion, painting, end, loop)
    last = film.course.last
    if restart:
        remove_keyframes(folder)
    kept = open_keyframes(folder, opened, film)
    reused = max(kept.count(last) - 1, 0)
    stills = _write_video(opened, film, kept, reused, zoom_in, out)
    if keyframes is None:
        kept.remove()
    result = {
        "out": str(out),
        "frames": motion.frame_count,
        "keyframes_painted": last - reused,
        "keyframes_reused": reused,
        "keyframes": None if keyframes is None else str(keyframes),
        "duration_seconds": motion.frame_count / motion.fps,
    }
    return result, stills


def _write_video(
    opened: Zoom, film: Film, kept: KeyframeFolder, reused: int, zoom_in: bool, out: Path
) -> list[NDArray[np.uint8]]:
    """Paint what is not there yet, write the video, and give six frames of it."""
    from .runtime import VideoWriter, film_frames

    count = film.motion.frame_count
    shown = {round(i * (count - 1) / 5) for i in range(6)}
    stills = []
    scheduled = film.painting.make_scheduler(opened.bundle.manifest.scheduler).timesteps
    calls = len(film.painting.schedule(len(scheduled)).calls)
    try:
        with VideoWriter(out, *opened.size, film.motion.fps) as video, progress_bars() as progress:
            if reused:
                there = f"{reused} of {film.course.last} keyframes are there from an earlier run, in '{kept.path}'"
                progress.console.print(printable(there), highlight=False)
            frames_task = progress.add_task("frames", total=count)
            paint_task = progress.add_task("painting steps", total=film.course.last * calls, completed=reused * calls)

            def on_step() -> None:
                progress.advance(paint_task)

            for number, frame in enumerate(film_frames(opened, film, kept, zoom_in, on_step)):
                video.write(frame)
                progress.advance(frames_task)
                if number in shown:
                    stills.append(frame)
    except BaseException as error:
        done = max(kept.count(film.course.last) - 1, 0)
        if not done:
            raise
        there = f"{done} of {film.course.last} keyframes are kept in '{kept.path}'"
        if isinstance(error, KeyboardInterrupt):
            raise OutzoomError(f"interrupted; {there}", hint="the same command goes on from there") from None
        err_console.print(printable(f"{there}: the same command goes on from there"), highlight=False)
        raise
    return stills


def zoom_video(
    zoom: Zoom,
    source: Path,
    prompt: str,
    out: Path,
    surround: Surround,
    painting: Painting,
    seconds: float | None,
    fps: float | None,
    with_audio: bool,
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """Write the zoom-out of a video; the result, JSON-able, and six frames."""
    from .runtime import AudioTrack, VideoReader, VideoWriter, VideoZoom

    scheduled = painting.make_scheduler(zoom.bundle.manifest.scheduler).timesteps
    calls = len(painting.schedule(len(scheduled)).calls)
    around, stills = VideoZoom(zoom.inpainting, surround), []
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source, around.live_size, fps, seconds))
        sound = stack.enter_context(AudioTrack(source)) if with_audio else None
        count = reader.expected_count
        shown = {round(i * ((count or 1) - 1) / 5) for i in range(6)}
        writer = stack.enter_context(VideoWriter(out, *zoom.size, reader.fps, sound, lambda: reader.start_seconds))
        progress = stack.enter_context(progress_bars())
        frames_task = progress.add_task("frames", total=count)
        keyframes = None if count is None else -(-count // surround.keyframe_every)
        paint_task = progress.add_task("painting steps", total=keyframes and keyframes * calls)
        for number, frame in enumerate(around.frames(reader, prompt, painting, lambda: progress.advance(paint_task))):
            writer.write(frame)
            progress.advance(frames_task)
            if number in shown:
                stills.append(frame)
    result = {
        "out": str(out),
        "frames": writer.count,
        "keyframes_painted": around.painted_count,
        "duration_seconds": writer.duration_seconds,
        "scene_changes": around.cut_count,
        "scale": [round(live / side, 4) for live, side in zip(around.live_size, zoom.size, strict=True)],
        "fps": float(reader.fps),
        "broken_frames": reader.broken_count,
        "audio": "left out" if sound is None else sound.how,
    }
    return result, stills
