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
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .runtime import Bundle, open_manifest
from .runtime.cache import cache_folder
from .runtime.errors import MissingPackageError, OutzoomError, UserError, printable, unknown_name
from .runtime.machine import parse_bytes, peak_rss_bytes
from .runtime.shapes import Size, parse_size
from .tables import (
    print_bundles,
    print_changes,
    print_compiled,
    print_components,
    print_devices,
    print_doctor,
    print_estimate,
    print_live,
    print_predictions,
    print_zoom,
)
from .terminal import builtins_of, err_console, out_console, progress_bars, show, warn
from .zooming import (
    check_shown,
    check_strip,
    check_video_out,
    only_source,
    prompts_of,
    zoom_live,
    zoom_picture,
    zoom_video,
)

if TYPE_CHECKING:
    from .hardware import Workload

DEMO_CHECKPOINT = Path(__file__).parent / "models" / "demo"
DEFAULT_JOBS = min(2, os.cpu_count() or 1)

app = typer.Typer(
    name="outzoom",
    help="Compile Stable Diffusion inpainting for edge devices, and zoom out with it, endlessly.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a directory that export-all wrote")]
DEVICE_HELP = "where OpenVINO's engines run: GPU, AUTO, or unet=NPU,vae_decoder=GPU; default: where the target says"
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
        int | None,
        typer.Option(
            "--shallow", metavar="N", help="how many skip connections the quick UNet of zoom's presets has [1]"
        ),
    ] = None,
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
    with progress_bars() as progress:
        task = progress.add_task("read the checkpoint", total=None)
        from .export import Plan, Shapes, build, check_disk, estimate, open_checkpoint, read_recipe

        def on_download(done_bytes: int, total_bytes: int) -> None:
            progress.update(task, description="download, MB", completed=done_bytes // 10**6, total=total_bytes // 10**6)

        opened = open_checkpoint(checkpoint, config, on_download)
        sizes = tuple(_parse_size(text) for text in size or []) or ((opened.native_side, opened.native_side),)
        recipes = tuple(read_recipe(name, budget_mb) for name in recipe or ["fp32"])
        targets = tuple(target or ["onnxruntime"])
        shapes = Shapes(sizes, 2 if interop else batch)
        skips = shallow if shallow is not None else int(not interop)
        plan = Plan(opened, targets, recipes, shapes, out, jobs, cache, hoist, skips, segments, interop)
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
        show(as_json, asdict(expected), lambda: print_estimate(expected))
        return
    seconds = time.perf_counter() - started
    show(
        as_json,
        {"seconds": round(seconds, 2), "bundles": [_bundle_summary(bundle) for bundle in bundles]},
        lambda: print_bundles(bundles, seconds),
    )


@app.command()
def zoom(
    bundle: BundleArgument,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="the picture to zoom out of")] = None,
    video: Annotated[Path | None, typer.Option(metavar="FILE", help="or the video: a border around it")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="the video: .mp4, .mkv or .webm")] = None,
    live: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="no video: show the zoom on a page there, until Ctrl-C")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="what is around it")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="what is when around it; or a .json")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="what not to paint; default: what --prompts says")
    ] = None,
    end_image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the outermost picture, the zoom in its centre")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="end in the picture that it began with")] = False,
    zoom_in: Annotated[bool, typer.Option("--zoom-in", help="show it the other way round")] = False,
    keyframes: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keep keyframes here; default: beside OUT until it is complete")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="paint anew what an earlier run has kept")] = False,
    strip: Annotated[Path | None, typer.Option(metavar="FILE", help="also write a strip of frames, a PNG")] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="length of the video [4, or all of --video]")
    ] = None,
    fps: Annotated[float | None, typer.Option(metavar="F", help="frames per second [30, or those of --video]")] = None,
    zoom_rate: Annotated[
        float | None, typer.Option(metavar="R", help="--image: how much the view widens per second [2]")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(metavar="C", help="--video: its size in the picture around it [0.75]")
    ] = None,
    keyframe_every: Annotated[
        int | None, typer.Option(metavar="N", help="paint 1 frame in N [30, or 5 of --video]")
    ] = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="--video: take its sound along")] = True,
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
    device: Annotated[str, typer.Option(metavar="DEVICE", help=DEVICE_HELP)] = "",
    memory_limit: Annotated[
        str, typer.Option(metavar="BYTES", help="open engines in turn to stay below, such as 1GiB")
    ] = "",
    vae_tile: Annotated[
        str, typer.Option(metavar="WxH", help="the VAE works on tiles of this, another of the bundle's sizes")
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
    """Zoom out of a picture, or of a video: paint around it, 1 frame in N, and write the video or show it live."""
    from .runtime import Limits, Motion, Surround, Zoom, film_strip, parse_devices, save_png
    from .runtime import preset as find_preset

    of_films: dict[str, object] = {"--prompts": prompts, "--end-image": end_image, "--loop": loop, "--zoom-in": zoom_in}
    of_films |= {"--keyframes": keyframes, "--restart": restart}
    of_pictures: dict[str, object] = {"--zoom-rate": zoom_rate, "--live": live, **of_films}
    source = only_source(image, video, of_pictures, {"--scale": scale, "--no-audio": not audio})
    limits = Limits(power_budget, temperature_limit)
    check_shown(out, live, {"--strip": strip, **of_films}, limits != Limits(), governor)
    if strip is not None:
        check_strip(strip, source)
    schedule = prompts_of(prompt, prompts)
    given: dict[str, Any] = {
        "steps": steps, "scheduler": scheduler, "guided": guided, "whole_every": whole_every, "strength": strength,
        "blend": blend,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    negative = (schedule.negative or "") if negative_prompt is None else negative_prompt
    changes |= {"guidance": guidance, "negative_prompt": negative, "seed": seed}
    painting = replace(find_preset(preset), **changes)
    pace: dict[str, Any] = {"seconds": seconds, "fps": fps, "zoom_rate": zoom_rate, "keyframe_every": keyframe_every}
    motion = Motion(**{name: value for name, value in pace.items() if value is not None}) if video is None else None
    started = time.perf_counter()
    limit_bytes = parse_bytes(memory_limit) if memory_limit else None
    open_zoom = partial(
        Zoom, size=_parse_size(size) if size else None, memory_limit_bytes=limit_bytes, cache=cache_folder(),
        devices=parse_devices(device) if device else {}, vae_tile=_parse_size(vae_tile) if vae_tile else None,
    )  # fmt: skip
    if live is not None and motion is not None:
        opens, painted = (lambda: open_zoom(_checked(bundle))), (preset, changes)
        status = zoom_live(opens, source, live, prompt or "", motion, painted, limits, governor, seconds)
        show(as_json, builtins_of(status), lambda: print_live(status))
        return
    assert out is not None
    if video is not None:
        surround = Surround(0.75 if scale is None else scale, 5 if keyframe_every is None else keyframe_every)
        check_video_out(out, source)
    with open_zoom(_checked(bundle)) as opened:
        if motion is None:
            result, stills = zoom_video(opened, source, prompt or "", out, surround, painting, seconds, fps, audio)
        else:
            film: dict[str, Any] = {
                "schedule": schedule,
                "motion": motion,
                "painting": painting,
                "end_image": end_image,
                "loop": loop,
            }
            result, stills = zoom_picture(opened, source, out, keyframes, restart, zoom_in, **film)
    if strip is not None:
        save_png(film_strip(stills), strip)
    result |= {
        "elapsed_seconds": round(time.perf_counter() - started, 2),
        "peak_rss_bytes": (peak_bytes := peak_rss_bytes()),
    }
    if limit_bytes and peak_bytes > limit_bytes:
        warn(
            f"{peak_bytes / 2**20:.0f} MiB of memory were in use at most, more than --memory-limit {memory_limit}: "
            "a bundle built with --segments, or of a smaller recipe, takes less"
        )
    show(as_json, result, lambda: print_zoom(result))


@app.command()
def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE...", help="directories that export-all wrote")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="BEFORE AFTER", help="no bundles: two results.json; exit code 1 if anything got worse"),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(metavar="SPREAD", help="--compare: how far runs lie apart, from outzoom.benchmarks.repeat"),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="for results.json and report.html")] = Path("bench"),
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="the picture; default: the demo's")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="what is around it")] = None,
    seconds: Annotated[float | None, typer.Option(metavar="S", help="length of the zoom")] = None,
    steps: Annotated[int | None, typer.Option(metavar="K", help="denoising steps per keyframe")] = None,
    guidance: Annotated[float | None, typer.Option(metavar="G", help="how strongly the prompt binds; 1: off")] = None,
    runs: Annotated[int | None, typer.Option(metavar="N", help="timed runs of each component")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="same seed, same pictures")] = None,
    power_model: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="where energy can't be measured: model it for this device, or TOML file"),
    ] = None,
    battery_wh: Annotated[
        float | None, typer.Option("--battery-wh", metavar="WH", help="how long does it last, zooming?")
    ] = None,
    idle_seconds: Annotated[
        float | None, typer.Option(metavar="S", help="rest before the zoom, to measure idle power [3]")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a CLIP that compares the last keyframe with the prompt")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also surround its centre, compare; write video.json")
    ] = None,
    drift: Annotated[
        int | None, typer.Option(metavar="N", help="also zoom out over N keyframes, 20 or more; write drift.json")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(metavar="RESULT", help="show other pipelines in the report: from outzoom.benchmarks.keyframe"),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="RESULTS", help="settings of another results.json, but for those given here")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure bundles on this machine: speed, memory, size, quality; write results.json and report.html."""
    try:
        from .benchmarks import BenchSettings, read_results, results_as_dict, run_bench
        from .benchmarks.bench import bench_more, check_more
        from .benchmarks.energy import obstacle
        from .benchmarks.keyframe_result import read_keyframe_result
    except ImportError as error:
        raise MissingPackageError(error.name or "matplotlib", "bench", "bench") from error

    if compare is not None:
        if bundles:
            raise UserError("--compare takes two results and no bundles", hint="leave the bundles out")
        _compare(*compare, noise, as_json)
        return
    if noise is not None:
        raise UserError("--noise goes with --compare", hint="outzoom bench --compare BEFORE AFTER --noise SPREAD.json")
    if not bundles:
        raise UserError("no bundle was named", hint="outzoom bench BUNDLE..., or --compare BEFORE AFTER")
    given: dict[str, Any] = {
        "image": image, "prompt": prompt, "seconds": seconds, "steps": steps, "guidance": guidance, "runs": runs,
        "seed": seed, "power_model": power_model, "battery_wh": battery_wh, "idle_seconds": idle_seconds, "clip": clip,
    }  # fmt: skip
    scenario = read_results(like).settings if like else BenchSettings()
    settings = replace(scenario, **{name: value for name, value in given.items() if value is not None})
    check_more(video, drift)
    others = read_keyframe_result(beside) if beside else None
    if why := obstacle():
        warn(why)
    with progress_bars() as progress:
        task = progress.add_task("start", total=settings.stage_count(len(bundles)))

        def on_progress(text: str) -> None:
            progress.update(task, description=text, advance=1)

        results = run_bench(bundles, out, settings, on_progress, others)
        progress.update(task, total=None)
        more = bench_more(bundles, out, settings, video, drift, on_progress)

    def print_paths() -> None:
        written = ["report.html", "results.json", *(f"{name}.json" for name in more)]
        out_console.print(", ".join(str(out / name) for name in written), markup=False)

    show(as_json, {**results_as_dict(results), **more}, print_paths)


def _compare(before: Path, after: Path, noise: Path | None, as_json: bool) -> None:
    """Show what changed; ends the command with 1 if anything got worse beyond noise."""
    from .benchmarks.compare import compare, machines_differ
    from .benchmarks.repeat import read_repeated
    from .benchmarks.results import read_results

    results = read_results(before), read_results(after)
    changes = compare(*results, read_repeated(noise) if noise else None)
    if machines_differ(*results):
        warn("the two were measured on different machines: times can't be compared")
    shown = {"changes": [{**asdict(one), "ratio": round(one.ratio, 4)} for one in changes]}
    show(as_json, shown, lambda: print_changes(changes))
    if any(one.verdict == "worse" for one in changes):
        raise typer.Exit(1)


@app.command("predict")
def predict_command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE]...", help="bundles or graphs; without any, full-size SD2 inpainting"),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(metavar="NAME|FILE", help="a profile; repeatable; default: all that come along")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="without a bundle: what the model is compiled by; repeatable"),
    ] = None,
    keyframe_every: Annotated[
        list[int] | None, typer.Option(metavar="N", help="paint 1 frame in N; repeatable; default: 1, 5 and 30")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="K", help="denoising steps per painted frame")] = 20,
    guidance: Annotated[bool, typer.Option("--guidance/--no-guidance", help="two passes of the UNet a step")] = True,
    whole_every: Annotated[
        int, typer.Option(metavar="N", help="the whole UNet runs in 1 step of N, the shallow one in the others")
    ] = 1,
    battery_wh: Annotated[
        float | None, typer.Option("--battery-wh", metavar="WH", help="how long does it last?")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=NUMBER", help="what if? a figure of every device; repeatable"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="for predict.json and predict.html")] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict speed, energy and traffic on devices that are not here; all of it modelled."""
    from .hardware import UseCase, known_devices, parse_changes, read_profile, survey

    workloads = _workloads(bundles or [], recipe or [])
    profiles = [read_profile(name) for name in device or known_devices()]
    cases = [UseCase(steps, guidance, every, battery_wh, whole_every) for every in keyframe_every or (1, 5, 30)]
    found = survey(workloads, profiles, cases, parse_changes(changes or []))
    if not found.predictions:
        reasons = "; ".join(refusal.reason for refusal in found.refusals[:3])
        raise UserError(f"no device can run it: {reasons}", hint="choose another recipe or device")
    result = {
        "method": "modelled",
        "predictions": [one.as_dict() for one in found.predictions],
        "refusals": [asdict(one) for one in found.refusals],
        "profiles": {profile.name: {k: builtins_of(v) for k, v in profile.figures.items()} for profile in profiles},
    }
    if out is not None:
        try:
            from .benchmarks.prediction_page import write_page
        except ImportError as error:
            raise MissingPackageError(error.name or "matplotlib", "bench", "the page of predictions") from error
        from .runtime.files import atomic_file

        write_page(found, profiles, workloads, out / "predict.html")
        with atomic_file(out / "predict.json") as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    show(as_json, result, lambda: print_predictions(found, out))


def _workloads(bundles: list[Path], recipes: list[str]) -> list[Workload]:
    """What is to be predicted: bundles or graphs, or the full-size model by recipes."""
    from .hardware import bundle_workload, full_size, graph_workload

    if bundles and recipes:
        raise UserError("a bundle has its own recipe, but --recipe was given too", hint="leave one of them out")
    if not bundles:
        return [full_size(name) for name in recipes or ("fp16", "int8")]
    return [
        graph_workload(path) if path.suffix in (".onnx", ".xml") else bundle_workload(open_manifest(path, verify=False))
        for path in bundles
    ]


@app.command()
def devices(
    calibrate: Annotated[bool, typer.Option("--calibrate", help="measure this machine; takes minutes")] = False,
    as_json: JsonOption = False,
) -> None:
    """List devices that can be predicted, and targets with the recipes that go for them; or measure this machine."""
    from .doctor import examine, recipes_by_target
    from .hardware import known_devices, read_profile
    from .hardware.profiles import HOST, host_file, write_host

    if calibrate:
        from .hardware.calibration import calibrate as measure

        with progress_bars() as progress:
            task = progress.add_task("calibrate", total=None)
            write_host(measure(lambda text: progress.update(task, description=f"calibrate {text}")))
    profiles = [read_profile(name) for name in known_devices()]
    if host_file().is_file():
        profiles.append(read_profile(HOST))
    targets, recipes = examine()["targets"], recipes_by_target()
    result = {
        "devices": {
            profile.name: {
                "description": profile.description, "kind": profile.kind, "target": profile.target,
                "figures": {name: builtins_of(figure) for name, figure in profile.figures.items()},
            }
            for profile in profiles
        },
        "targets": targets,
        "recipes": recipes,
        "host": str(host_file()) if host_file().is_file() else None,
    }  # fmt: skip
    show(as_json, result, lambda: print_devices(profiles, targets, recipes))


@app.command("compile")
def compile_command(
    bundle: BundleArgument,
    device: Annotated[str, typer.Option(metavar="DEVICE", help=DEVICE_HELP)] = "",
    as_json: JsonOption = False,
) -> None:
    """On the device: compile what can only be compiled there, and keep it, so that the next start is quick."""
    from .runtime import compile_bundle, parse_devices

    opened, devices = _checked(bundle), parse_devices(device) if device else {}
    done = []
    manifest = opened.manifest
    with progress_bars() as progress:
        task = progress.add_task("compile", total=len(manifest.components) * len(manifest.sizes))
        for one in compile_bundle(opened, cache_folder(), devices):
            done.append(one)
            progress.update(task, description=f"compiled {one.component}", advance=1)
    show(
        as_json,
        {"cache": str(cache_folder()), "engines": [asdict(one) for one in done]},
        lambda: print_compiled(done, manifest.target),
    )


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check a bundle, hashes too, and show what is in it."""
    opened = _checked(bundle)
    show(as_json, _bundle_summary(opened), lambda: print_components(opened))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can do: packages, targets, processor, memory, disk."""
    from .doctor import examine

    report = examine()
    show(as_json, report, lambda: print_doctor(report))


def _checked(path: Path) -> Bundle:
    """The opened bundle, its hashes checked behind a bar when that takes a while."""
    total_bytes = open_manifest(path, verify=False).size_bytes
    with progress_bars(transient=True) as progress:
        task = progress.add_task("check the bundle", total=total_bytes)
        return open_manifest(path, progress=lambda size_bytes: progress.advance(task, size_bytes))


def _parse_size(text: str) -> Size:
    try:
        return parse_size(text)
    except ValueError:
        hint = "for example --size 512x512"
        raise UserError(f"a size is WIDTHxHEIGHT in pixels, got '{text}'", hint=hint) from None


def _bundle_summary(bundle: Bundle) -> dict[str, Any]:
    return {"path": str(bundle.path), "size_bytes": bundle.size_bytes, **builtins_of(bundle.manifest)}


def _version(show: bool) -> None:
    if show:
        out_console.print(f"outzoom {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it")] = False,
) -> None:
    pass


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
        warnings.showwarning = warn  # type: ignore[assignment]
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
