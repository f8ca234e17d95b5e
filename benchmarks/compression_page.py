"""Our recipes beside other compressors, as a table for a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from .markdown import row

ERROR_CHARACTERS = 160


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
        lines.append(row(cells))
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
