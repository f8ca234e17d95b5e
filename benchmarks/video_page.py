"""Videos and the frames between keyframes, as tables for the pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from .markdown import with_error

BUSY_FRACTION = 0.1  # of the machine's CPU time, taken by others: timings are too long


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
            with_error(row[name], digits)
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
