"""The numbers on the pages, made from committed results: `python -m outzoom.benchmarks.readme` writes them in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import PRESETS
from . import memory_page, qnn_page
from .scripts import footnote

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ERROR_CHARACTERS = 160
BUSY_FRACTION = 0.1  # of the machine's CPU time, taken by others: timings are too long
ONE_STEP = "right caption, unguided, 1 step"  # as models/evaluate_demo.py calls it


def demo_quality(result: dict[str, Any]) -> str:
    """What the demo model paints, against baselines and with other captions; from models/evaluate_demo.py."""
    lines = [
        f"Painted borders of {result['scenes']} scenes that training never saw, half of each side given, compared with "
        f"the truth (mean ± standard error; {result['bundle']}, {result['steps']} steps, guidance "
        f"{result['guidance']:g} or none):",
        "",
        "| border from | PSNR, dB | SSIM | seam ratio |",
        "|---|---|---|---|",
    ]
    for name, score in result["border"].items():
        values = (_with_error(score["border_psnr_db"], 2), _with_error(score["border_ssim"], 3))
        lines.append(f"| {name} | {values[0]} | {values[1]} | {_with_error(score['seam_ratio'], 2)} |")
    share, gain = result["share_of_scenes_where"], result["gain_over_edge_replication"][ONE_STEP]
    lines += [
        f"| *the truth itself* | | | {_with_error(result['seam_ratio_of_the_truth'], 2)} |",
        "",
        "The seam ratio is the mean step between pixels across the edge over that elsewhere. The right caption "
        f"gives the lower error than a wrong one in {share['right_caption_beats_wrong_guided']:.0%} of the scenes, the "
        f"painted border than edge replication in {share['painted_beats_edge_replication']:.0%}. What the model "
        f"expects (1 step) is nearer to the truth than edge replication in "
        f"{share['one_step_beats_edge_replication']:.0%}, by {_with_error(gain['border_psnr_db'], 2)} dB and "
        f"{_with_error(gain['border_ssim'], 3)} of SSIM. The VAE alone reproduces these scenes at "
        f"{_with_error(result['vae_round_trip_psnr_db'], 1)} dB.",
        *_ideal_painter(result["of_scenes_of_small_things"]),
    ]
    return "\n".join(lines)


def _ideal_painter(scores: dict[str, Any]) -> list[str]:
    """How near to the truth a painter can come that knows all but where small things are."""
    lines = [
        "",
        "How near can a painter come that knows hills, horizon and moon, but not where small things lie? The true "
        "world with flowers, fish, corals, stars, clouds and trees outside the known part elsewhere tells "
        "(towns left out: houses stand in rows):",
        "",
        "| border from, without the towns | PSNR, dB | SSIM |",
        "|---|---|---|",
    ]
    for name, score in scores.items():
        lines.append(f"| {name} | {_with_error(score['border_psnr_db'], 2)} | {_with_error(score['border_ssim'], 3)} |")
    return lines


def demo_recipes(result: dict[str, Any]) -> str:
    """What each recipe costs on the demo model; from models/evaluate_recipes.py."""
    lines = [
        f"The demo model, keyframes around {result['scenes']} scenes that training never saw, {result['steps']} steps, "
        f"guidance {result['guidance']:g}, from the same noise as the fp32 bundle of the same target; "
        f"{result['machine']}, {result['cores']} cores:",
        "",
        "| bundle | on disk, MB | keyframe against fp32, PSNR dB | SSIM | border against the truth, PSNR dB "
        "| a UNet step, ms (p10-p90) | to fp32's |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, bundle in result["bundles"].items():
        psnr, step = bundle["keyframe_psnr_db"], bundle["unet_step"]
        cells = [
            name,
            f"{bundle['size_bytes'] / 1e6:.1f}",
            _with_error(psnr, 1) if psnr else "reference or equal",
            f"{bundle['keyframe_ssim']['mean']:.3f}",
            _with_error(bundle["border_psnr_to_truth_db"], 2),
            f"{step['median_ms']:.1f} ({step['p10_ms']:.1f}-{step['p90_ms']:.1f})",
            f"{step['ratio_to_fp32']['median']:.2f}",
        ]
        lines.append(_row(cells))
    lines += [
        "",
        "The steps were timed in turn, all engines of a target loaded in one process; there the idle threads of ONNX "
        "Runtime's other sessions take time from the one that runs, so that its steps take longer than alone.",
    ]
    return "\n".join(lines)


def demo_bench(results: dict[str, Any]) -> str:
    """What the demo model costs; from `outzoom bench`."""
    imported = results["runtime_import"]
    return (
        f"The demo model at {_bench_table(results)}\n\n"
        f"`import outzoom.runtime` takes {imported['latency']['median_ms']:.0f} ms and "
        f"{imported['rss_growth_bytes'] / 1e6:.0f} MB. `benchmarks/results/demo-bench.json` has all of it."
    )


def full_size_bench(results: dict[str, Any]) -> str:
    """What the full-size model costs; from `outzoom bench`."""
    return f"At {_bench_table(results)}\n\n`benchmarks/results/full-size-bench.json` has all of it."


def _took(results: dict[str, Any]) -> str:
    seconds = results.get("wall_seconds")
    return f", all of it in {seconds / 60:.0f} minutes" if seconds else ""


def _bench_table(results: dict[str, Any]) -> str:
    machine, settings, first = results["machine"], results["settings"], results["bundles"][0]
    has_quality = any(bundle["quality"] for bundle in results["bundles"])
    columns = [
        "bundle", "a keyframe, ms", "frames per second, painting included", "opened after start, ms", "on disk, MB",
        "peak memory, MB", *(["border PSNR against fp32, dB"] if has_quality else []),
    ]  # fmt: skip
    lines = [
        f"{first['width']}x{first['height']}, {settings['steps']} steps with guidance, 1 frame in "
        f"{settings['keyframe_every']} painted; {machine['cpu_model']}, {machine['usable_cores']} cores, load average "
        f"{machine['load_average_1min']:.1f} before{_took(results)}; median (p10-p90):",
        "",
        _row(columns),
        "|" + "---|" * len(columns),
    ]
    for bundle in results["bundles"]:
        zoom, keyframe, quality = bundle["zoom"], bundle["zoom"]["keyframe"], bundle["quality"]
        cells = [
            bundle["name"],
            f"{keyframe['median_ms']:.0f} ({keyframe['p10_ms']:.0f}-{keyframe['p90_ms']:.0f})",
            f"{zoom['frames_per_second']:.{0 if zoom['frames_per_second'] >= 10 else 2}f}",
            f"{bundle['open']['from_process_start_ms']:.0f}",
            f"{bundle['size_bytes'] / 1e6:.1f}",
            f"{bundle['memory']['peak_rss_bytes'] / 1e6:.0f}",
        ]
        told = bool(quality) and quality[0]["border_psnr_db"] is not None
        if has_quality:
            cells.append(f"{quality[0]['border_psnr_db']:.1f}" if told else "reference or equal")
        lines.append(_row(cells))
    return "\n".join(lines)


def demo_repeat(result: dict[str, Any]) -> str:
    """How far runs of one scenario lie apart; from outzoom.benchmarks.repeat."""
    machine, loads = result["machine"], ", ".join(f"{load:.1f}" for load in result["load_averages"])
    lines = [
        f"{len(result['created_utc'])} runs; {machine['cpu_model']}, {machine['usable_cores']} cores, load average "
        f"{loads} before; the largest over the smallest, less 1:",
        "",
        "| bundle | a keyframe | frames per second | opened after start | peak memory | UNet alone |",
        "|---|---|---|---|---|---|",
    ]
    figures = ("keyframe_ms", "frames_per_second", "open_ms", "peak_rss_bytes", "unet_ms")
    for name, bundle in result["bundles"].items():
        lines.append(_row([name, *(f"{bundle[figure]['spread']:.0%}" for figure in figures)]))
    return "\n".join(lines)


def full_size(result: dict[str, Any]) -> str:
    """What the full-size model costs to build and to run; from outzoom.benchmarks.full_size."""
    lines = [
        f"Stable Diffusion 2 inpainting at full size (866M-parameter UNet, random weights in float16), 512x512; "
        f"{result['machine']}, {result['cores']} cores:",
        "",
        "| | wall, s | peak memory of any process, GiB |",
        "|---|---|---|",
    ]
    rows = {
        "ONNX of all four components": "onnx_export",
        "`export-all --target openvino-cpu --recipe fp16`": "build_openvino-cpu",
        "`export-all --target onnxruntime --recipe fp16`, after the other": "build_onnxruntime",
    }
    for name, key in rows.items():
        if key in result:
            memory = result[key]["peak_rss_bytes_of_any_process"] / 2**30
            lines.append(f"| {name} | {result[key]['wall_seconds']:.0f} | {memory:.2f} |")
    rounds = result.get("beside_optimum", [])
    beside = {
        side: [[one[side][key] for one in rounds] for key in ("wall_seconds", "peak_rss_bytes_of_any_process")]
        for side in ("ours", "optimum")
    }
    names = {"ours": "the same beside optimum", "optimum": "`optimum-cli export openvino --weight-format fp16`"}
    for side, (seconds, peaks) in beside.items() if rounds else ():
        cell = "-".join(f"{value:.0f}" for value in sorted({min(seconds), max(seconds)}))
        turns = f", {len(rounds)} times in turn"
        lines.append(f"| {names[side]}{turns} | {cell} | {max(peaks) / 2**30:.2f} |")
    built = result["build_openvino-cpu"]
    parity = ", ".join(f"{name} {value:.1f}" for name, value in built["parity_psnr_db"].items())
    lines += ["", f"With nothing to do it takes {built['rebuild_wall_seconds']:.1f} s. Parity, dB: {parity}."]
    for key in ("zoom_openvino-cpu", "zoom_onnxruntime"):
        if key in result:
            zoom = result[key]
            call, bare = zoom["unet_call_seconds"], zoom["bare_unet_call_seconds"]
            lines += [
                f"A UNet call in the zoom on {key.removeprefix('zoom_')} takes {call['median']:.2f} s "
                f"({call['p10']:.2f}-{call['p90']:.2f}), the bare engine {bare['median']:.2f} s."
            ]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def _with_error(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['standard_error']:.{digits}f}"


def demo_video(result: dict[str, Any]) -> str:
    """A video's border by how much of it is painted; from models/evaluate_video.py."""
    machine = result["machine"]
    lines = [
        f"{len(result['truths'])} clips of {result['scores'][0]['frame_count']} frames of scenes that training never "
        f"saw, the centre given at {result['scale']:g} of the size; means over the clips ± standard error; "
        f"{result['bundle']}, {result['steps']} steps, guidance {result['guidance']:g}; "
        f"{machine['cpu_model']}, {machine['usable_cores']} cores:",
        "",
        "| painted: 1 frame in | frames between | border, PSNR dB | SSIM | flicker, levels | worst frame | seam ratio "
        "| detail to the truth's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        cells = [
            _with_error(row[name], digits)
            for name, digits in (
                ("border_psnr_db", 2), ("border_ssim", 3), ("flicker_levels", 2), ("flicker_worst_levels", 1),
                ("seam_ratio", 2), ("detail_ratio", 2),
            )
        ]  # fmt: skip
        method = row["method"] if row["keyframe_every"] > 1 else ""
        lines.append(f"| {row['keyframe_every']} | {method} | {' | '.join(cells)} |")
    truths = {
        name: float(np.mean([each[name] for each in result["truths"]])) for name in ("flicker_levels", "seam_ratio")
    }
    lines.append(f"| *the truth itself* | | | | {truths['flicker_levels']:.2f} | | {truths['seam_ratio']:.2f} | 1.00 |")
    costs = result["costs"]
    shares = ", ".join(
        f"{one['frame_ms'] / costs[0]['frame_ms']:.2f} at 1 in {one['keyframe_every']}" for one in costs[1:]
    )
    busy = result["other_cpu_fraction"] > BUSY_FRACTION
    found = result["drift"]["drift"]
    lines += [
        "",
        f"Time, to that of painting every frame: {shares} (a painting took {costs[0]['paint_ms']:.0f} ms, a frame "
        f"between {costs[0]['between_ms']:.1f} ms{', beside other work on the machine' if busy else ''}).",
        "",
        f"Drift, zooming out of a picture by {1 / result['drift']['scale']:g} for {len(result['drift']['painted'])} "
        f"keyframes: from the first {result['drift']['window']} painted borders to the last, a channel's mean changes "
        f"by {found['colour_levels']:.1f} levels at most, contrast by a factor of {found['contrast_ratio']:.2f}, "
        f"detail by {found['detail_ratio']:.2f}.",
    ]
    return "\n".join(lines)


def rendering(result: dict[str, Any]) -> str:
    """Speed and memory of the frames between; from `outzoom.benchmarks.rendering`."""
    busy = ", beside other work on the machine" if result["other_cpu_fraction"] > BUSY_FRACTION else ""
    cpu_model, side_px = result["machine"]["cpu_model"], result["side_px"]
    lines = [
        f"One core of {cpu_model}{busy}, {side_px}x{side_px}; median (p10-p90):",
        "",
        "| frames between keyframes | a frame, ms | frames per second | the slowest kind, ms |",
        "|---|---|---|---|",
    ]
    for name, speed in (("of a still zoom", result["still"]), ("of a video", result["video"])):
        frame = speed["frame"]
        lines.append(
            f"| {name} | {frame['median_ms']:.1f} ({frame['p10_ms']:.1f}-{frame['p90_ms']:.1f}) | "
            f"{speed['frames_per_second']:.0f} | {speed['slowest_median_ms']:.1f} ({speed['slowest']}) |"
        )
    memory = " and ".join(
        f"of a {name} {min(one['rss_bytes']) / 1e6:.0f} to {max(one['rss_bytes']) / 1e6:.0f} MB "
        f"({one['spread_fraction']:.1%})"
        for name, one in (("still zoom", result["memory_still"]), ("video", result["memory_video"]))
    )
    lines += [
        "",
        f"Resident memory from frame 500 to {result['memory_still']['frame_count']:,} (from file to file, "
        f"{result['memory_bundle']} at {result['memory_side_px']}x{result['memory_side_px']}): {memory}.",
    ]
    return "\n".join(lines)


def compression(result: dict[str, Any]) -> str:
    """Our recipes beside other compressors; from outzoom.benchmarks.compression."""
    loads = [one["load_before"] for one in (*result["results"].values(), *result["timing"].values())]
    lines = [
        f"`{result['checkpoint']}` at {result['size']}x{result['size']}; {result['machine']}, {result['cores']} cores, "
        f"load average {min(loads):.1f} to {max(loads):.1f} before each; {result['runs']} runs of the UNet "
        f"to calibrate on, {result['held_out_runs']} others to compare on; steps: median (p10-p90):",
        "",
        "| | UNet, MB | compressing, s | its peak memory, GiB | relative L2 error, mean (worst) | PSNR, dB "
        "| a step, ms | to fp32's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    steps = {name: step for timed in result["timing"].values() for name, step in timed["engines"].items()}
    for name, one in result["results"].items():
        cells = [name, *(_compressed(one, steps.get(name)) if "error" not in one else _failed(one["error"]))]
        lines.append(_row(cells))
    return "\n".join(lines)


def _compressed(one: dict[str, Any], step: dict[str, Any] | None) -> list[str]:
    error, psnr = one["relative_l2"], one["psnr_db"]
    cells = [
        f"{one['size_bytes'] / 1e6:.1f}",
        f"{one['wall_seconds']:.0f}",
        f"{one['peak_rss_bytes'] / 2**30:.2f}",
        f"{error['mean']:.3f} ({error['max']:.3f})",
        f"{psnr['mean']:.1f}" if psnr else "equal",
    ]
    if step is None:
        own_ms = [seconds * 1e3 for seconds in one.get("step_seconds", [])[1:]]  # the first run warms up
        return [*cells, f"{np.median(own_ms):.0f}, on PyTorch" if own_ms else "", ""]
    ratio = step["ratio_to_fp32"]
    return [
        *cells,
        f"{step['median_ms']:.0f} ({step['p10_ms']:.0f}-{step['p90_ms']:.0f})",
        f"{ratio['median']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})",
    ]


def _failed(error: str) -> list[str]:
    """How an error begins, and its last line, in a row of cells that are empty otherwise."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = lines[0] if len(lines) == 1 else f"{lines[0].partition(':')[0]}: {lines[-1]}"
    return [f"fails: {said[:ERROR_CHARACTERS]}".replace("|", "\\|"), *[""] * 6]


def demo_switches(result: dict[str, Any]) -> str:
    """What painting in less time gains and costs; from models/evaluate_switches.py."""
    lines = [
        f"The demo model ({result['bundle']}), keyframes around {result['scenes']} scenes that training never saw, "
        f"guidance {result['guidance']:g}, beside those of `quality` from the same noise, each scene painted by all in "
        f"turn; {result['machine']}, {result['cores']} cores:",
        "",
        "| | a keyframe, to `quality`'s (p10-p90) | PSNR against `quality`, dB | SSIM "
        "| border against the truth, PSNR dB |",
        "|---|---|---|---|---|",
    ]
    for name, one in result["variants"].items():
        time, psnr = one["time_ratio"], one["keyframe_psnr_db"]
        cells = [
            f"`{name}`" if name in PRESETS else name,
            f"{time['median']:.2f} ({time['p10']:.2f}-{time['p90']:.2f})",
            _with_error(psnr, 1) if psnr else "",
            f"{one['keyframe_ssim']['mean']:.3f}",
            _with_error(one["border_psnr_to_truth_db"], 2),
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


def keyframe(result: dict[str, Any]) -> str:
    """A keyframe and its memory, beside other pipelines'; from outzoom.benchmarks.keyframe."""
    width, height = result["size"]
    steps = f", {result['steps']} steps" if result.get("steps") else ""
    has_intervals = all("low" in side["ratio"] for side in result["sides"].values())
    ends, spread = (("low", "high"), "95% interval of the median") if has_intervals else (("p10", "p90"), "p10-p90")
    lines = [
        f"`{result['checkpoint']}`, {result['bundle']}, {width}x{height}, guidance {result['guidance']:g}{steps}, "
        f"painted in turn {result['rounds']} times after one that is not counted; {result['machine']}, "
        f"{result['cores']} cores, load average {result['load_before']:.1f} before:",
        "",
        f"| | a keyframe, s (min-max) | to {result['reference']}'s ({spread}) | peak memory, GiB |",
        "|---|---|---|---|",
    ]
    for name, side in result["sides"].items():
        seconds, ratio = side["keyframe_seconds"], side["ratio"]
        digits = 1 if np.median(seconds) >= 10 else 2
        cells = [
            f"`{name}`" if name in PRESETS else name,
            f"{np.median(seconds):.{digits}f} ({min(seconds):.{digits}f}-{max(seconds):.{digits}f})",
            f"{ratio['median']:.2f} ({ratio[ends[0]]:.2f}-{ratio[ends[1]]:.2f})"
            if name != result["reference"]
            else "1",
            f"{side['peak_rss_bytes'] / 2**30:.2f}",
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


def live(result: dict[str, Any]) -> str:
    """How steady the live zoom is; from outzoom.benchmarks.live."""
    machine, motion, painting = result["machine"], result["motion"], result["painting"]
    lines = [
        f"`{result['source']}` as {result['bundle']} at {result['size'][0]}x{result['size'][1]}, {motion['fps']:g} "
        f"frames per second asked for, 1 in {motion['keyframe_every']} painted, {painting['steps']} steps with "
        f"guidance, the view {motion['zoom_rate']:g} times as wide each second; {machine['cpu_model']}, "
        f"{machine['usable_cores']} cores, load average {machine['load_average_1min']:.1f} before; frames "
        "as they arrive in another process over HTTP:",
        "",
        "| | s | frames per second | apart, ms: median (95%, 99%, most) | frames left out or missed | keyframes per "
        "second | late | a keyframe takes, ms (p10-p90) | speed to that asked for | governor's points |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for phase in result["phases"]:
        viewer, took = phase["viewer"], phase["painting"]
        points = ", ".join(f"{int(level) + 1}: {share:.0%}" for level, share in phase["levels"].items())
        cells = [
            phase["name"],
            f"{phase['seconds']:.0f}",
            f"{viewer['fps']:.2f}",
            f"{viewer['interval_ms']:.1f} ({viewer['interval_p95_ms']:.1f}, {viewer['interval_p99_ms']:.1f}, "
            f"{viewer['interval_max_ms']:.1f})",
            f"{phase['frames_dropped']}, {viewer['dropped']}",
            f"{phase['keyframes_per_second']:.2f}",
            f"{phase['keyframes_late']} of {phase['keyframes_painted']}",
            f"{took['median_ms']:.0f} ({took['p10_ms']:.0f}-{took['p90_ms']:.0f})" if took else "",
            f"{phase['zoom_rate_fraction']:.3f}",
            f"{points} of the time, of {result['levels']} points",
        ]
        lines.append(_row(cells))
    power = result["phases"][0]["power_watts"]
    watts = f"{power:.1f} W ({result['power_method']})" if power is not None else "not measured: the machine tells none"
    busy = " Other work ran on the machine meanwhile, in all phases." if machine["warning"] else ""
    lines += ["", f"Power {watts}; {result['peak_rss_bytes'] / 1e6:.0f} MB of memory at most.{busy}"]
    return "\n".join(lines)


def targets(result: dict[str, Any]) -> str:
    """Which recipe goes for which target, and what becomes of each component; from outzoom.benchmarks.targets."""
    entries = {(entry["target"], entry["recipe"]): entry for entry in result["entries"]}
    names, recipes = (list(dict.fromkeys(key[index] for key in entries)) for index in (0, 1))
    machine, timed = result["machine"], any(entry["seconds"] is not None for entry in entries.values())
    reasons: list[str] = []
    lines = [
        f"`{result['checkpoint']}`, every bundle built on {machine['cpu_model']}, {machine['usable_cores']} cores; "
        "megabytes on disk, the lowest parity of a component in dB"
        f"{', and the seconds that it took beyond the stages that others had run' if timed else ''}:",
        "",
        _row(["target", "engines", *recipes]),
        "|" + "---|" * (len(recipes) + 2),
    ]
    for name in names:
        made = next(entry["made"] for (target, _), entry in entries.items() if target == name)
        cells = [_target_cell(entries.get((name, recipe)), reasons) for recipe in recipes]
        lines.append(_row([f"`{name}`", made, *cells]))
    lines += ["", *(f"[{number}] {reason}." for number, reason in enumerate(reasons, 1))]
    checked: dict[str, list[str]] = {}
    for (name, _), entry in entries.items():
        if entry["checked_on"] and name not in checked.setdefault(entry["checked_on"], []):
            checked[entry["checked_on"]].append(name)
    for on, those in checked.items():
        lines += ["", f"The parity of {', '.join(f'`{name}`' for name in those)} was measured on engines of `{on}`."]
    away = {name: reason for name, reason in result["absent"].items() if reason and name in names}
    lines += ["", *(f"- Built, not run, `{name}`: {reason}." for name, reason in away.items())]
    return "\n".join([*lines, "", *_component_table(entries, names, recipes)])


def _target_cell(entry: dict[str, Any] | None, reasons: list[str]) -> str:
    if entry is None:
        return "not tried"
    if entry["refused"]:
        return f"refused {footnote(entry['refused'], reasons)}"
    parts = entry["components"].values()
    size_mb = sum(part["size_bytes"] for part in parts) / 1e6
    seconds = f", {entry['seconds']:.0f} s" if entry["seconds"] is not None else ""
    return f"{size_mb:.1f} MB, {_least_db(list(parts))}{seconds}"


def _least_db(parts: list[dict[str, Any]]) -> str:
    parities = [part["parity_psnr_db"] for part in parts if part["parity_psnr_db"] is not None]
    return f"{min(parities):.0f} dB" if parities else "equal"


def _component_table(entries: dict[tuple[str, str], dict[str, Any]], names: list[str], recipes: list[str]) -> list[str]:
    """Size and parity of each component by itself, folded away: it has a row for each target and component."""
    components = list(dict.fromkeys(name for entry in entries.values() for name in entry["components"]))
    lines = [
        "<details><summary>Each component by itself: megabytes and parity</summary>", "",
        _row(["target", "component", *recipes]), "|" + "---|" * (len(recipes) + 2),
    ]  # fmt: skip
    for name in names:
        for component in components:
            parts = [entries.get((name, recipe), {}).get("components", {}).get(component) for recipe in recipes]
            cells = [f"{part['size_bytes'] / 1e6:.1f}, {_least_db([part])}" if part else "" for part in parts]
            lines.append(_row([f"`{name}`", component, *cells]))
    return [*lines, "", "</details>"]


def opening(result: dict[str, Any]) -> str:
    """How long engines take to open, cold and warm; from outzoom.benchmarks.opening."""
    machine = result["machine"]
    components = list(dict.fromkeys(name for bundle in result["bundles"] for name in bundle["components"]))
    rounds = len(result["bundles"][0]["components"]["unet"]["cold_seconds"])
    lines = [
        f"`{result['checkpoint']}` at {result['size'][0]}x{result['size'][1]}; {machine['cpu_model']}, "
        f"{machine['usable_cores']} cores, load average {machine['load_average_1min']:.1f} before; seconds cold, then "
        f"warm, {'in one process' if rounds == 1 else f'medians of {rounds} processes'} with an empty cache:",
        "",
        _row(["bundle", *components, "kept, MB"]),
        "|" + "---|" * (len(components) + 2),
    ]
    for bundle in result["bundles"]:
        opened = bundle["components"]
        cells = [_cold_and_warm(opened[name]) if name in opened else "" for name in components]
        kept_mb = sum(one["kept_bytes"] for one in opened.values()) / 1e6
        lines.append(_row([bundle["name"], *cells, f"{kept_mb:.0f}"]))
    return "\n".join(lines)


def _cold_and_warm(opened: dict[str, Any]) -> str:
    return ", ".join(f"{np.median(opened[kind]):.2f}" for kind in ("cold_seconds", "warm_seconds"))


def tensorrt(result: dict[str, Any]) -> str:
    """Which engines TensorRT's builder takes; from outzoom.benchmarks.tensorrt_engines."""
    entries = result["entries"]
    capabilities, names, components = (
        list(dict.fromkeys(entry[key] for entry in entries)) for key in ("capability", "name", "component")
    )
    built = {entry["capability"] for entry in entries if not entry["refused"]}
    whole = [one for one in capabilities if one not in built and _capability_refusal(entries, one)]
    asked = [one for one in capabilities if one not in whole]
    lines = [
        f"`{result['model']}`, built by {result['package']} {result['version']} for compute capability "
        f"{', '.join(asked)}, each by itself; megabytes of the ONNX model with its weights, and of the engine for "
        f"{asked[0]}:",
        "",
        _row(["bundle", *components]),
        "|" + "---|" * (len(components) + 1),
    ]
    reasons: list[str] = []
    for name in names:
        cells = [name]
        for component in components:
            found = [
                e for e in entries if (e["name"], e["component"]) == (name, component) and e["capability"] in asked
            ]
            cells.append(_engine_cell(found, reasons))
        lines.append(_row(cells))
    lines += ["", *(f"[{number}] {reason}." for number, reason in enumerate(reasons, 1))]
    lines += ["", *(f"{_capability_refusal(entries, one)}." for one in whole)]
    return "\n".join(lines).rstrip()


def _capability_refusal(entries: list[dict[str, Any]], capability: str) -> str:
    """Why nothing is built for a capability, or nothing if it was the graphs' fault."""
    refusals = (str(entry["refused"] or "") for entry in entries if entry["capability"] == capability)
    return next((refusal for refusal in refusals if "compute capability" in refusal), "")


def _engine_cell(found: list[dict[str, Any]], reasons: list[str]) -> str:
    """One engine for all capabilities that it was built for, and why not for others."""
    if not found:
        return ""
    built = [entry for entry in found if not entry["refused"]]
    cell = f"{built[0]['onnx_bytes'] / 1e6:.1f}, {built[0]['engine_bytes'] / 1e6:.1f}" if built else ""
    for entry in found:
        if entry["refused"]:
            mark = f"refused {footnote(entry['refused'].rstrip('.'), reasons)}"
            cell = mark if not built else f"{cell}; {entry['capability']} {mark}"
            if not built:
                break
    return cell


Sections = dict[str, tuple[str, Callable[[dict[str, Any]], str]]]
PAGES: dict[str, Sections] = {
    "README.md": {
        "demo-bench": ("demo-bench.json", demo_bench),
        "demo-recipes": ("demo-recipes.json", demo_recipes),
        "demo-quality": ("demo-quality.json", demo_quality),
        "full-size": ("full-size.json", full_size),
    },
    "docs/painting.md": {
        "demo-switches": ("demo-switches.json", demo_switches),
        "full-size-keyframe": ("full-size-keyframe.json", keyframe),
        "full-size-limits": ("full-size-limits.json", keyframe),
    },
    "docs/snapdragon.md": {"qnn-demo": ("qnn-demo.json", qnn_page.contexts)},
    "docs/video.md": {
        "demo-video": ("demo-video.json", demo_video),
        "rendering": ("rendering.json", rendering),
    },
    "docs/devices.md": {
        "targets": ("targets.json", targets),
        "full-size-targets": ("full-size-targets.json", targets),
        "opening": ("opening.json", opening),
        "full-size-opening": ("full-size-opening.json", opening),
    },
    "docs/benchmarks.md": {
        "demo-keyframe": ("demo-keyframe.json", keyframe),
        "demo-repeat": ("demo-repeat.json", demo_repeat),
        "full-size-bench": ("full-size-bench.json", full_size_bench),
        "full-size-rivals": ("full-size-rivals.json", keyframe),
    },
    "docs/tensorrt.md": {
        "tensorrt-demo": ("tensorrt-demo.json", tensorrt),
        "tensorrt-full-size": ("tensorrt-full-size.json", tensorrt),
    },
    "docs/live.md": {"live": ("live.json", live)},
    "docs/compression.md": {
        "demo-compression": ("demo-compression.json", compression),
        "full-size-compression": ("full-size-compression.json", compression),
    },
    "docs/memory.md": {
        "strategies": ("memory.json", memory_page.strategies),
        "mappings": ("memory.json", memory_page.mappings),
        "papers": ("memory.json", memory_page.papers),
        "zigzag": ("memory.json", memory_page.zigzag),
        "speed": ("memory.json", memory_page.speed),
    },
}


def updated(page: str, text: str) -> str:
    """The text of a page, every section between `<!-- NAME -->` and `<!-- end of NAME -->` made anew."""
    for name, (file, make) in PAGES[page].items():
        result = RESULTS / file
        made = make(json.loads(result.read_text("utf-8"))) if result.exists() else "Not measured yet."
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        parts = re.split(f"{begin}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"{page} has {len(parts) - 1} sections {begin} ... {end}, expected one")
        text = f"{begin}\n{made}\n{end}".join(parts)
    return text


if __name__ == "__main__":
    for page in PAGES:
        file = ROOT / page
        file.write_text(updated(page, file.read_text("utf-8")), "utf-8")
