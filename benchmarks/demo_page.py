"""What the demo model paints, and what its recipes and switches cost, as tables for the pages."""

from __future__ import annotations

from typing import Any

from ..runtime import PRESETS
from .markdown import row, with_error

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
        values = (with_error(score["border_psnr_db"], 2), with_error(score["border_ssim"], 3))
        lines.append(f"| {name} | {values[0]} | {values[1]} | {with_error(score['seam_ratio'], 2)} |")
    share, gain = result["share_of_scenes_where"], result["gain_over_edge_replication"][ONE_STEP]
    lines += [
        f"| *the truth itself* | | | {with_error(result['seam_ratio_of_the_truth'], 2)} |",
        "",
        "The seam ratio is the mean step between pixels across the edge over that elsewhere. The right caption "
        f"gives the lower error than a wrong one in {share['right_caption_beats_wrong_guided']:.0%} of the scenes, the "
        f"painted border than edge replication in {share['painted_beats_edge_replication']:.0%}. What the model "
        f"expects (1 step) is nearer to the truth than edge replication in "
        f"{share['one_step_beats_edge_replication']:.0%}, by {with_error(gain['border_psnr_db'], 2)} dB and "
        f"{with_error(gain['border_ssim'], 3)} of SSIM. The VAE alone reproduces these scenes at "
        f"{with_error(result['vae_round_trip_psnr_db'], 1)} dB.",
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
        lines.append(f"| {name} | {with_error(score['border_psnr_db'], 2)} | {with_error(score['border_ssim'], 3)} |")
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
            with_error(psnr, 1) if psnr else "reference or equal",
            f"{bundle['keyframe_ssim']['mean']:.3f}",
            with_error(bundle["border_psnr_to_truth_db"], 2),
            f"{step['median_ms']:.1f} ({step['p10_ms']:.1f}-{step['p90_ms']:.1f})",
            f"{step['ratio_to_fp32']['median']:.2f}",
        ]
        lines.append(row(cells))
    lines += [
        "",
        "The steps were timed in turn, all engines of a target loaded in one process; there the idle threads of ONNX "
        "Runtime's other sessions take time from the one that runs, so that its steps take longer than alone.",
    ]
    return "\n".join(lines)


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
            with_error(psnr, 1) if psnr else "",
            f"{one['keyframe_ssim']['mean']:.3f}",
            with_error(one["border_psnr_to_truth_db"], 2),
        ]
        lines.append(row(cells))
    return "\n".join(lines)
