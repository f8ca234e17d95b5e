"""The command line: thin commands over the folders, each imported when it is needed.

Results go to stdout (with `--json`: one JSON object and nothing else), progress and messages to stderr. Exit
code 0, 2 for the user's mistake, 1 for a failure.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import __version__
from .runtime import Bundle, open_manifest
from .runtime.errors import MissingPackageError, OutzoomError, UserError, printable, unknown_name
from .runtime.shapes import Size, parse_size

if TYPE_CHECKING:
    from .export import Estimate
    from .runtime import Painting, Surround, Zoom

DEMO_CHECKPOINT = Path(__file__).parent / "models" / "demo"
DEFAULT_JOBS = min(2, os.cpu_count() or 1)

app = typer.Typer(
    name="outzoom",
    help="Compile Stable Diffusion inpainting for edge devices, and zoom out with it, endlessly.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Names of files and of what is in them are shown as they are, be there brackets or colons in them.
out_console = Console(soft_wrap=True, markup=False, emoji=False)
err_console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a directory that export-all wrote")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]


@app.command("export-all")
def export_all(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="[CHECKPOINT]", help="a diffusers directory, a .safetensors file, owner/name[@revision]"
        ),
    ] = str(DEMO_CHECKPOINT),
    config: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID", help="for a .safetensors file: whose tokenizer, configurations, scheduler"),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(metavar="NAME", help="what to build for; repeatable")] = None,
    recipe: Annotated[list[str] | None, typer.Option(metavar="NAME|FILE", help="how; repeatable")] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="picture size; repeatable; default: the checkpoint's own")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="pictures in one UNet call: 2 does guidance in one")] = 1,
    hoist: Annotated[
        bool, typer.Option("--hoist/--no-hoist", help="take out of the UNet what no step changes, to run it once")
    ] = False,
    interop: Annotated[bool, typer.Option("--interop", help="make bundles that optimum's pipelines open too")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="where the bundles go")] = Path("out"),
    budget_mb: Annotated[
        float | None, typer.Option("--budget-mb", metavar="MB", help="what a bundle of a mixed recipe may take on disk")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="stages at a time, each a process")] = DEFAULT_JOBS,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="results of stages; default: OUT/.cache")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done and what it takes")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint, apply each recipe, compile for each target: one bundle each."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # what they remark on is no news to our users
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    started = time.perf_counter()
    with _progress() as progress:
        task = progress.add_task("read the checkpoint", total=None)
        from .export import Plan, Shapes, build, check_disk, estimate, open_checkpoint, read_recipe

        def on_download(done_bytes: int, total_bytes: int) -> None:
            progress.update(task, description="download, MB", completed=done_bytes // 10**6, total=total_bytes // 10**6)

        opened = open_checkpoint(checkpoint, config, on_download)
        sizes = tuple(_parse_size(text) for text in size or []) or ((opened.native_side, opened.native_side),)
        recipes = tuple(read_recipe(name, budget_mb) for name in recipe or ["fp32"])
        targets = tuple(target or ["onnxruntime"])
        shapes = Shapes(sizes, 2 if interop else batch)
        plan = Plan(opened, targets, recipes, shapes, out, jobs, cache, hoist, interop)
        progress.update(task, description="plan", completed=0, total=plan.stage_count)
        expected = estimate(plan)
        check_disk(plan, expected.disk_bytes)

        def on_event(kind: str, text: str) -> None:
            if kind == "start":
                progress.update(task, description=text)
            else:
                progress.advance(task)
                if text:
                    progress.console.print(text, highlight=False)

        bundles = [] if dry_run else list(build(plan, on_event))
    if dry_run:
        _show(as_json, asdict(expected), lambda: _print_estimate(expected))
        return
    seconds = time.perf_counter() - started
    _show(
        as_json,
        {"seconds": round(seconds, 2), "bundles": [_bundle_summary(bundle) for bundle in bundles]},
        lambda: _print_bundles(bundles, seconds),
    )


@app.command()
def zoom(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="what is around it")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the video: .mp4, .mkv or .webm")],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="the picture to zoom out of")] = None,
    video: Annotated[Path | None, typer.Option(metavar="FILE", help="or the video: a border around it")] = None,
    strip: Annotated[Path | None, typer.Option(metavar="FILE", help="also write a strip of frames, a PNG")] = None,
    negative_prompt: Annotated[str, typer.Option(metavar="TEXT", help="what not to paint")] = "",
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="length of the video; default: 4, or all of --video")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(metavar="F", help="frames per second; default: 30, or those of --video")
    ] = None,
    zoom_rate: Annotated[
        float | None, typer.Option(metavar="R", help="--image: how much the view widens per second; default: 2")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(metavar="C", help="--video: its size in the picture around it; default: 0.75")
    ] = None,
    keyframe_every: Annotated[
        int | None, typer.Option(metavar="N", help="paint 1 frame in N; default: 30, or 5 of --video")
    ] = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="--video: take its sound along")] = True,
    steps: Annotated[int, typer.Option(metavar="K", help="denoising steps per painted frame")] = 20,
    scheduler: Annotated[str | None, typer.Option(metavar="NAME", help="default: the checkpoint's own")] = None,
    guidance: Annotated[float, typer.Option(metavar="G", help="how strongly the prompt binds; 1: off")] = 7.5,
    seed: Annotated[int, typer.Option(metavar="N", help="same seed, same video")] = 0,
    size: Annotated[str, typer.Option(metavar="WxH", help="one of the bundle's sizes; default: its first")] = "",
    as_json: JsonOption = False,
) -> None:
    """Zoom out of a picture, or of a video: paint around it, 1 frame in N, and write the video."""
    from .runtime import Motion, Painting, VideoWriter, Zoom, film_strip, load_image, save_png

    painting = Painting(steps, scheduler, guidance, negative_prompt, seed)
    source = _only_source(image, video, zoom_rate, scale)
    if strip is not None:
        _check_strip(strip, source)
    started = time.perf_counter()
    if image is None:
        from .runtime import Surround

        surround = Surround(0.75 if scale is None else scale, 5 if keyframe_every is None else keyframe_every)
        _check_video_out(out, source)
        with Zoom(_checked(bundle), _parse_size(size) if size else None) as opened:
            result = _zoom_video(opened, source, prompt, out, surround, painting, seconds, fps, audio, strip)
        result["elapsed_seconds"] = round(time.perf_counter() - started, 2)
        _show(as_json, result, lambda: _print_zoom(result))
        return
    fps = 30.0 if fps is None else fps
    motion = Motion(
        4.0 if seconds is None else seconds,
        fps,
        2.0 if zoom_rate is None else zoom_rate,
        30 if keyframe_every is None else keyframe_every,
    )
    stills = []
    with Zoom(_checked(bundle), _parse_size(size) if size else None) as opened:
        calls = len(painting.make_scheduler(opened.bundle.manifest.scheduler).timesteps)
        picture = load_image(image, opened.size)
        shown = {round(i * (motion.frame_count - 1) / 5) for i in range(6)}
        with VideoWriter(out, *opened.size, fps) as writer, _progress() as progress:
            frames_task = progress.add_task("frames", total=motion.frame_count)
            paint_task = progress.add_task("painting steps", total=motion.painted_count * calls)

            def on_step() -> None:
                progress.advance(paint_task)

            for number, frame in enumerate(opened.frames(picture, prompt, motion, painting, on_step)):
                writer.write(frame)
                progress.advance(frames_task)
                if strip is not None and number in shown:
                    stills.append(frame)
    if strip is not None:
        save_png(film_strip(stills), strip)
    result = {
        "out": str(out),
        "frames": motion.frame_count,
        "keyframes_painted": motion.painted_count,
        "duration_seconds": motion.frame_count / fps,
        "elapsed_seconds": round(time.perf_counter() - started, 2),
    }
    _show(as_json, result, lambda: _print_zoom(result))


def _only_source(image: Path | None, video: Path | None, zoom_rate: float | None, scale: float | None) -> Path:
    """The picture or the video, whichever is given; raises UserError for none or both, or options of the other."""
    if image is not None and video is not None:
        raise UserError("--image and --video do not go together", hint="give the one to zoom out of")
    source = image or video
    if source is None:
        raise UserError("there is nothing to zoom out of", hint="give --image FILE, or --video FILE")
    if video is not None and zoom_rate is not None:
        raise UserError("--zoom-rate is for --image", hint="--scale says how far a video is zoomed out")
    if image is not None and scale is not None:
        raise UserError("--scale is for --video", hint="--zoom-rate says how fast a picture is zoomed out")
    return source


def _zoom_video(
    zoom: Zoom,
    source: Path,
    prompt: str,
    out: Path,
    surround: Surround,
    painting: Painting,
    seconds: float | None,
    fps: float | None,
    with_audio: bool,
    strip: Path | None,
) -> dict[str, Any]:
    """Write the zoom-out of a video, and a strip of it; the result, JSON-able."""
    from .runtime import AudioTrack, VideoReader, VideoWriter, VideoZoom, film_strip, save_png

    calls = len(painting.make_scheduler(zoom.bundle.manifest.scheduler).timesteps)
    around, stills = VideoZoom(zoom.inpainting, surround), []
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source, around.live_size, fps, seconds))
        sound = stack.enter_context(AudioTrack(source)) if with_audio else None
        count = reader.expected_count
        shown = {round(i * ((count or 1) - 1) / 5) for i in range(6)}
        writer = stack.enter_context(VideoWriter(out, *zoom.size, reader.fps, sound, lambda: reader.start_seconds))
        progress = stack.enter_context(_progress())
        frames_task = progress.add_task("frames", total=count)
        keyframes = None if count is None else -(-count // surround.keyframe_every)
        paint_task = progress.add_task("painting steps", total=keyframes and keyframes * calls)
        for number, frame in enumerate(around.frames(reader, prompt, painting, lambda: progress.advance(paint_task))):
            writer.write(frame)
            progress.advance(frames_task)
            if strip is not None and number in shown:
                stills.append(frame)
    if strip is not None:
        save_png(film_strip(stills), strip)
    return {
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


@app.command()
def bench(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="directories that export-all wrote")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="for results.json and report.html")] = Path("bench"),
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="the picture; default: the demo's")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="what is around it")] = None,
    seconds: Annotated[float | None, typer.Option(metavar="S", help="length of the zoom")] = None,
    steps: Annotated[int | None, typer.Option(metavar="K", help="denoising steps per keyframe")] = None,
    guidance: Annotated[float | None, typer.Option(metavar="G", help="how strongly the prompt binds; 1: off")] = None,
    runs: Annotated[int | None, typer.Option(metavar="N", help="timed runs of each component")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="same seed, same pictures")] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also surround its centre, compare; write video.json")
    ] = None,
    drift: Annotated[
        int | None, typer.Option(metavar="N", help="also zoom out over N keyframes, 20 or more; write drift.json")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure bundles on this machine: speed, memory, size, quality; write results.json and report.html."""
    try:
        from .benchmarks import BenchSettings, results_as_dict, run_bench
        from .benchmarks.bench import bench_more, check_more
    except ImportError as error:
        raise MissingPackageError(error.name or "matplotlib", "bench", "bench") from error

    given: dict[str, Any] = {
        "image": image, "prompt": prompt, "seconds": seconds, "steps": steps, "guidance": guidance, "runs": runs,
        "seed": seed,
    }  # fmt: skip
    settings = replace(BenchSettings(), **{name: value for name, value in given.items() if value is not None})
    check_more(video, drift)
    with _progress() as progress:
        task = progress.add_task("start", total=settings.stage_count(len(bundles)))

        def on_progress(text: str) -> None:
            progress.update(task, description=text, advance=1)

        results = run_bench(bundles, out, settings, on_progress)
        progress.update(task, total=None)
        more = bench_more(bundles, out, settings, video, drift, on_progress)

    def print_paths() -> None:
        written = ["report.html", "results.json", *(f"{name}.json" for name in more)]
        out_console.print(", ".join(str(out / name) for name in written), markup=False)

    _show(as_json, {**results_as_dict(results), **more}, print_paths)


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check a bundle, hashes too, and show what is in it."""
    opened = _checked(bundle)
    _show(as_json, _bundle_summary(opened), lambda: _print_components(opened))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can do: packages, targets, processor, memory, disk."""
    from .doctor import examine

    report = examine()
    _show(as_json, report, lambda: _print_doctor(report))


def _check_strip(strip: Path, source: Path) -> None:
    """Refuse now what would cost the video or the picture once the frames are painted."""
    if strip.suffix.lower() != ".png":
        raise UserError(f"the strip is a PNG file, got '{strip}'", hint=f"try --strip {strip}.png")
    if strip.resolve() == source.resolve():
        raise UserError(f"--strip would replace '{source}'", hint="name another file")


def _check_video_out(out: Path, source: Path) -> None:
    if out.resolve() == source.resolve():
        raise UserError(f"--out would replace the video '{source}' itself", hint="name another file")


def _checked(path: Path) -> Bundle:
    """The opened bundle, its hashes checked behind a bar when that takes a while."""
    total_bytes = open_manifest(path, verify=False).size_bytes
    with _progress(transient=True) as progress:
        task = progress.add_task("check the bundle", total=total_bytes)
        return open_manifest(path, progress=lambda size_bytes: progress.advance(task, size_bytes))


def _parse_size(text: str) -> Size:
    try:
        return parse_size(text)
    except ValueError:
        hint = "for example --size 512x512"
        raise UserError(f"a size is WIDTHxHEIGHT in pixels, got '{text}'", hint=hint) from None


@contextmanager
def _progress(transient: bool = False) -> Iterator[Progress]:
    """Bars with the time left, on stderr; a transient one is gone when it is done."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err_console,
        transient=transient,
        disable=transient and not err_console.is_terminal,
    ) as progress:
        yield progress


def _show(as_json: bool, result: dict[str, Any], print_table: Callable[[], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        print_table()


def _bundle_summary(bundle: Bundle) -> dict[str, Any]:
    return {"path": str(bundle.path), "size_bytes": bundle.size_bytes, **_builtins(bundle.manifest)}


def _builtins(struct: Any) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(struct)
    return found


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _print_bundles(bundles: list[Bundle], seconds: float) -> None:
    table = Table(title=f"{len(bundles)} bundles in {seconds:.1f} s", title_justify="left")
    for column in ("bundle", "size", "parity of the UNet", "lowest parity"):
        table.add_column(column, overflow="fold")
    for bundle in bundles:
        parities = {
            name: float("inf") if component.parity_psnr_db is None else component.parity_psnr_db
            for name, component in bundle.manifest.components.items()
        }
        worst = min(parities, key=lambda name: parities[name])
        row = (f"{parities['unet']:.1f} dB", f"{parities[worst]:.1f} dB ({worst})")
        table.add_row(str(bundle.path), _megabytes(bundle.size_bytes), *row)
    out_console.print(table)


def _print_estimate(expected: Estimate) -> None:
    for name in expected.stages:
        out_console.print(name)
    out_console.print(
        f"{len(expected.stages)} stages to run, about {expected.seconds:.0f} s; "
        f"{_megabytes(expected.disk_bytes)} of disk while it builds, {_megabytes(expected.kept_bytes)} kept; "
        f"{_megabytes(expected.peak_memory_bytes)} of memory"
        if expected.stages
        else "everything is up to date"
    )


def _print_components(bundle: Bundle) -> None:
    manifest = bundle.manifest
    sizes = ", ".join(f"{width}x{height}" for width, height in manifest.sizes)
    out_console.print(
        f"{bundle.path}: {manifest.target}, recipe {manifest.recipe.name}, {sizes}, "
        f"{_megabytes(bundle.size_bytes)}, from {manifest.source.name} ({manifest.source.sha256[:12]}); hashes match"
    )
    table = Table()
    table.add_column("component", no_wrap=True)
    for column in ("parameters", "bits each", "inputs", "outputs", "parity"):
        table.add_column(column, overflow="fold")
    for name, component in manifest.components.items():
        shapes = (
            "\n".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in specs)
            for specs in (component.inputs, component.outputs)
        )
        bits = f"{8 * bundle.component_size_bytes(name) / component.parameters:.1f}" if component.parameters else "-"
        parity = "exact" if component.parity_psnr_db is None else f"{component.parity_psnr_db:.1f} dB"
        table.add_row(name, f"{component.parameters:,}", bits, *shapes, parity)
    out_console.print(table)


def _print_doctor(report: dict[str, Any]) -> None:
    table = Table(title=f"outzoom {report['outzoom']}, Python {report['python']}", title_justify="left")
    for column in ("for", "package", "version"):
        table.add_column(column, overflow="fold")
    for extra, packages in report["packages"].items():
        for name, found in packages.items():
            table.add_row(extra, name, found or f"missing: pip install 'outzoom[{extra}]'")
    out_console.print(table)
    for target, state in report["targets"].items():
        out_console.print(f"target {target}: {state}")
    machine = report["machine"]
    out_console.print(
        f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['features']) or 'no features known'}; "
        f"{machine['memory_bytes'] / 2**30:.1f} GiB memory, {machine['disk_free_bytes'] / 2**30:.1f} GiB disk free"
    )


def _print_zoom(result: dict[str, Any]) -> None:
    out_console.print(
        f"{result['out']}: {result['frames']} frames, {result['keyframes_painted']} of them painted, "
        f"in {result['elapsed_seconds']} s"
    )


def _version(show: bool) -> None:
    if show:
        out_console.print(f"outzoom {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it")] = False,
) -> None:
    pass


def _warn(message: Warning | str, *_: Any) -> None:
    err_console.print(f"warning: {printable(str(message))}", style="yellow", highlight=False)


def _fail(message: str, hint: str, code: int, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps({"error": {"message": message, "hint": hint}}) + "\n")
    err_console.print(f"error: {printable(message)}", style="red", highlight=False)
    if hint:
        err_console.print(f"  hint: {printable(hint)}", highlight=False)
    return code


# Typer's own name for it changed with the release that brought its own copy of click.
UsageError: Any = typer.BadParameter.__mro__[1]
CTRL_C = 130  # what Typer makes of a KeyboardInterrupt


def run(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    as_json = "--json" in arguments
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        return _run(arguments or ["--help"], as_json)


def _run(arguments: list[str], as_json: bool) -> int:
    command: Any = typer.main.get_command(app)
    interrupted = "interrupted; what was not complete was removed"
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in command.commands:
            raise unknown_name("command", arguments[0], command.commands)
        code = int(command.main(arguments, prog_name="outzoom", standalone_mode=False) or 0)
        return _fail(interrupted, "", 1, as_json) if code == CTRL_C else code
    except OutzoomError as error:
        return _fail(str(error), error.hint, error.exit_code, as_json)
    except UsageError as error:
        context = error.ctx
        hint = f"'{context.command_path} --help' lists the options" if context else ""
        return _fail(error.format_message(), hint, 2, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(interrupted, "", 1, as_json)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", "", 1, as_json)
    except MemoryError:
        return _fail("there is not enough memory", "take a smaller size, or a recipe with smaller weights", 1, as_json)
    except Exception as error:
        traceback.print_exc()
        message = f"unexpected {type(error).__name__}: {error}"
        return _fail(message, "this is a bug in outzoom: please report it with the lines above", 1, as_json)


def main() -> None:
    """The entry point of the `outzoom` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal or a file that is not UTF-8
    sys.exit(run(sys.argv[1:]))
