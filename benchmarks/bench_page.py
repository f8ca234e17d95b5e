"""What `outzoom bench` and its relatives measured, as tables for the pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runtime import PRESETS
from .markdown import row


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
        row(columns),
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
        lines.append(row(cells))
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
        lines.append(row([name, *(f"{bundle[figure]['spread']:.0%}" for figure in figures)]))
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
        lines.append(row(cells))
    return "\n".join(lines)
