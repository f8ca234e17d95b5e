"""What `outzoom.benchmarks.live` measured, as a table for a page."""

from __future__ import annotations

from typing import Any

from .markdown import row


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
        lines.append(row(cells))
    power = result["phases"][0]["power_watts"]
    watts = f"{power:.1f} W ({result['power_method']})" if power is not None else "not measured: the machine tells none"
    busy = " Other work ran on the machine meanwhile, in all phases." if machine["warning"] else ""
    lines += ["", f"Power {watts}; {result['peak_rss_bytes'] / 1e6:.0f} MB of memory at most.{busy}"]
    return "\n".join(lines)
