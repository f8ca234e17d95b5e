"""The command line: thin commands over the folders, each imported when it is needed.

Results go to stdout (with `--json`: one JSON object and nothing else), progress and messages to stderr. Exit
code 0, 2 for the user's mistake, 1 for a failure.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from .runtime.machine import parse_bytes, peak_rss_bytes
from .runtime.shapes import Size, parse_size

if TYPE_CHECKING:
    from .export import Estimate
    from .runtime import Limits, LiveStatus, LiveZoom
    from .runtime.live_server import LiveServer

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
    shallow: Annotated[
        int, typer.Option("--shallow", metavar="N", help="add a UNet of N skip connections, for zoom's --whole-every")
    ] = 0,
    segments: Annotated[
        int, typer.Option("--segments", metavar="N", help="cut the UNet into N engines, for zoom's --memory-limit")
    ] = 1,
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
        plan = Plan(opened, targets, recipes, shapes, out, jobs, cache, hoist, shallow, segments, interop)
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
    image: Annotated[Path, typer.Option(metavar="FILE", help="the picture to zoom out of")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="what is around it")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="the video: .mp4, .mkv or .webm")] = None,
    live: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="no video: show the zoom on a page there, until Ctrl-C")
    ] = None,
    strip: Annotated[Path | None, typer.Option(metavar="FILE", help="also write a strip of frames, a PNG")] = None,
    negative_prompt: Annotated[str, typer.Option(metavar="TEXT", help="what not to paint")] = "",
    seconds: Annotated[float | None, typer.Option(metavar="S", help="length [4; with --live: endless]")] = None,
    fps: Annotated[float, typer.Option(metavar="F", help="frames per second; with --live what is held")] = 30.0,
    zoom_rate: Annotated[float, typer.Option(metavar="R", help="how much the view widens per second")] = 2.0,
    keyframe_every: Annotated[int, typer.Option(metavar="N", help="paint 1 frame in N")] = 30,
    preset: Annotated[str, typer.Option(metavar="NAME", help="quality, balanced or fast; what else is given wins")] = (
        "quality"
    ),
    steps: Annotated[int | None, typer.Option(metavar="K", help="denoising steps per painted frame [20]")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="NAME", help="default: the checkpoint's own")] = None,
    guidance: Annotated[float, typer.Option(metavar="G", help="how strongly the prompt binds; 1: off")] = 7.5,
    guided: Annotated[
        tuple[float, float] | None, typer.Option(metavar="FROM TO", help="guide in this part of the steps [0 1]")
    ] = None,
    whole_every: Annotated[
        int | None, typer.Option(metavar="N", help="run the whole UNet in 1 step of N, the shallow one in others [1]")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(metavar="S", help="below 1: begin with the extended picture, not with noise [1]")
    ] = None,
    blend: Annotated[
        bool | None, typer.Option("--blend/--no-blend", help="put the known part back after every step [no]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="same seed, same video")] = 0,
    size: Annotated[str, typer.Option(metavar="WxH", help="one of the bundle's sizes; default: its first")] = "",
    memory_limit: Annotated[
        str, typer.Option(metavar="BYTES", help="open engines in turn to stay below, such as 1GiB")
    ] = "",
    governor: Annotated[
        bool, typer.Option("--governor/--no-governor", help="with --live: paint quicker where time or a limit asks")
    ] = True,
    power_budget: Annotated[
        float | None, typer.Option(metavar="WATTS", help="with --live: what the machine may take on average")
    ] = None,
    temperature_limit: Annotated[
        float | None, typer.Option(metavar="C", help="with --live: how hot it may get, in degrees Celsius")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Zoom out of a picture: paint around it, 1 frame in N, and write the video or show it live."""
    from .runtime import Limits, LiveZoom, Motion, VideoWriter, Zoom, film_strip, load_image, presets_from, save_png
    from .runtime import preset as find_preset

    if strip is not None:
        _check_strip(strip, image)
    if live is None and out is None:
        raise UserError("Missing option '--out'", hint="name the video, or show the zoom on a page with --live 8000")
    if live is not None and (out is not None or strip is not None):
        raise UserError("--live shows the zoom and writes neither --out nor --strip", hint="leave out one of them")
    limits = Limits(power_budget, temperature_limit)
    if limits != Limits() and (live is None or not governor):
        raise UserError("limits are for a live zoom with its governor", hint="add --live 8000, or leave them out")
    motion = Motion(Motion.seconds if seconds is None else seconds, fps, zoom_rate, keyframe_every)
    given = {
        "steps": steps, "scheduler": scheduler, "guided": guided, "whole_every": whole_every, "strength": strength,
        "blend": blend,
    }  # fmt: skip
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes |= {"guidance": guidance, "negative_prompt": negative_prompt, "seed": seed}
    painting = replace(find_preset(preset), **changes)
    started = time.perf_counter()
    stills = []
    limit_bytes = parse_bytes(memory_limit) if memory_limit else None
    chosen = _parse_size(size) if size else None
    if live is not None:
        from .runtime.live_server import LiveServer, parse_address

        with (
            LiveServer(*parse_address(live)) as server,
            Zoom(_checked(bundle), chosen, memory_limit_bytes=limit_bytes) as opened,
        ):
            paintings = presets_from(preset, opened.bundle.manifest, changes)
            picture = load_image(image, opened.size)
            status = _serve(
                server, LiveZoom(opened, picture, prompt, paintings, motion, limits, governor), limits, seconds
            )
        _show(as_json, _builtins(status), lambda: _print_live(status))
        return
    assert out is not None
    with Zoom(_checked(bundle), chosen, memory_limit_bytes=limit_bytes) as opened:
        scheduled = painting.make_scheduler(opened.bundle.manifest.scheduler).timesteps
        calls = len(painting.schedule(len(scheduled)).calls)
        picture = load_image(image, opened.size)
        shown = {round(i * (motion.frame_count - 1) / 5) for i in range(6)}
        with VideoWriter(out, *opened.size, fps) as video, _progress() as progress:
            frames_task = progress.add_task("frames", total=motion.frame_count)
            paint_task = progress.add_task("painting steps", total=motion.painted_count * calls)

            def on_step() -> None:
                progress.advance(paint_task)

            for number, frame in enumerate(opened.frames(picture, prompt, motion, painting, on_step)):
                video.write(frame)
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
        "peak_rss_bytes": (peak_bytes := peak_rss_bytes()),
    }
    if limit_bytes and peak_bytes > limit_bytes:
        _warn(
            f"{peak_bytes / 2**20:.0f} MiB of memory were in use at most, more than --memory-limit {memory_limit}: "
            "a bundle built with --segments, or of a smaller recipe, takes less"
        )
    _show(
        as_json,
        result,
        lambda: out_console.print(
            f"{out}: {motion.frame_count} frames, {motion.painted_count} of them painted, "
            f"in {result['elapsed_seconds']} s"
        ),
    )


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
    as_json: JsonOption = False,
) -> None:
    """Measure bundles on this machine: speed, memory, size, quality; write results.json and report.html."""
    try:
        from .benchmarks import BenchSettings, results_as_dict, run_bench
    except ImportError as error:
        raise MissingPackageError(error.name or "matplotlib", "bench", "bench") from error

    given: dict[str, Any] = {
        "image": image, "prompt": prompt, "seconds": seconds, "steps": steps, "guidance": guidance, "runs": runs,
        "seed": seed,
    }  # fmt: skip
    settings = replace(BenchSettings(), **{name: value for name, value in given.items() if value is not None})
    with _progress() as progress:
        task = progress.add_task("start", total=settings.stage_count(len(bundles)))

        def on_progress(text: str) -> None:
            progress.update(task, description=text, advance=1)

        results = run_bench(bundles, out, settings, on_progress)

    def print_paths() -> None:
        out_console.print(f"{out / 'report.html'}, {out / 'results.json'}", markup=False)

    _show(as_json, results_as_dict(results), print_paths)


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


def _check_strip(strip: Path, image: Path) -> None:
    """Refuse now what would cost the video or the picture once the frames are painted."""
    if strip.suffix.lower() != ".png":
        raise UserError(f"the strip is a PNG file, got '{strip}'", hint=f"try --strip {strip}.png")
    if strip.resolve() == image.resolve():
        raise UserError(f"--strip would replace the picture '{image}'", hint="name another file")


def _serve(server: LiveServer, live: LiveZoom, limits: Limits, seconds: float | None) -> LiveStatus:
    """Show a live zoom for so long, or until Ctrl-C; what it did."""
    with live, server.serving(live), contextlib.suppress(KeyboardInterrupt):
        err_console.print(f"the zoom is on {server.url}; Ctrl-C ends it", highlight=False)
        for option, value, measured in (
            ("--power-budget", limits.power_watts, live.measures_power),
            ("--temperature-limit", limits.temperature_celsius, live.measures_temperature),
        ):
            if value is not None and not measured:
                _warn(f"{option} has no effect: this machine does not tell it, or not to this user")
        until = time.monotonic() + (math.inf if seconds is None else seconds)
        while (left := until - time.monotonic()) > 0:
            live.wait(min(left, 3600.0))
    return live.status()


def _print_live(status: LiveStatus) -> None:
    out_console.print(
        f"{status.frames_shown} frames in {status.elapsed_seconds:.1f} s, {status.frames_dropped} left out; "
        f"{status.keyframes_painted} keyframes painted, {status.keyframes_late} late"
    )


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
