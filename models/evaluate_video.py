"""How good the border of a video is, and how much painting it takes, on clips of scenes that training never saw.

    python models/evaluate_video.py BUNDLE --out benchmarks/results/demo-video.json --pictures docs

A camera moves over a scene, which is rendered as wide as the border; the centre is the input, the border the truth.
It also zooms out of a picture over 50 keyframes, and says how its colours and its detail drift.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import msgspec
import numpy as np
from evaluate_demo import FIRST_UNSEEN_SEED

import scenes
from outzoom.benchmarks.drift import measure_drift
from outzoom.benchmarks.machine import describe_machine
from outzoom.benchmarks.measure import CpuShare
from outzoom.benchmarks.quality import Picture
from outzoom.benchmarks.video import METHODS, Clip, Painter, Score, VideoResult, measure_video, shown
from outzoom.runtime import Painting, film_strip, open_bundle, save_png
from outzoom.runtime.border import layout_for
from outzoom.runtime.files import atomic_file

FPS = 30
SCALE = 0.75
SHOWN = (("truth", 1), ("look-ahead", 1), ("look-ahead", 5), ("look-ahead", 10), ("repeated", 10))
COLOURS = dict(zip(METHODS, ("#0072B2", "#D55E00", "#7F7F7F"), strict=True))
Path_ = Callable[[float], scenes.Window]


def panning(t: float) -> scenes.Window:
    """To the right, a little up and down: 14 pixels of 128 a second."""
    return scenes.Window(-0.5 + 0.22 * t, 0.03 * np.sin(3 * t), 1.0)


def panning_fast(t: float) -> scenes.Window:
    """To the left, 58 pixels of 128 a second."""
    return scenes.Window(0.6 - 0.9 * t, 0.1, 1.0)


def handheld(t: float) -> scenes.Window:
    """As a hand shakes."""
    x, y = 0.06 * np.sin(4 * t) + 0.03 * np.sin(11 * t), 0.05 * np.sin(5 * t + 1) + 0.02 * np.sin(13 * t)
    return scenes.Window(x, y, 1.0 + 0.02 * np.sin(3 * t))


def zooming(t: float) -> scenes.Window:
    """Out, by 15% a second."""
    return scenes.Window(0.1, 0.0, 0.9 * 1.15**t)


def still(t: float) -> scenes.Window:
    """On a tripod."""
    return scenes.Window(0.1, 0.0, 1.0)


CLIPS: tuple[tuple[str, Path_], ...] = (
    ("reef", panning), ("meadow", handheld), ("town", panning), ("night", zooming),
    ("meadow", still), ("town", handheld), ("meadow", panning_fast), ("reef", zooming),
)  # fmt: skip


def make_clip(index: int, count: int, side: int) -> Clip:
    """Frames of a scene, along a path."""
    kind, path = CLIPS[index]
    seed = FIRST_UNSEEN_SEED + 100 + index
    rendered = [scenes.render(kind, seed, path(i / FPS), side) for i in range(count)]
    return Clip(f"{kind}, {path.__name__.replace('_', ' ')}", rendered[0][1], [picture for picture, _ in rendered])


def drift_picture(side: int, kind: str = "meadow") -> tuple[Picture, str]:
    """What the zoom over many keyframes begins with, and its caption."""
    return scenes.render(kind, FIRST_UNSEEN_SEED + 200, scenes.Window(0.0, 0.0, 0.7), side)


def summary(result: VideoResult) -> list[dict[str, Any]]:
    """Means over the clips and their standard errors, for each method and interval."""
    fields = ("border_psnr_db", "border_ssim", "seam_ratio", "flicker_levels", "flicker_worst_levels", "detail_ratio")
    rows = []
    for every in sorted({score.keyframe_every for score in result.scores}):
        for method in METHODS:
            scores = [each for each in result.scores if (each.method, each.keyframe_every) == (method, every)]
            if scores:
                values = np.array([[getattr(each, field) for field in fields] for each in scores])
                error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else values[0] * 0
                named = zip(fields, values.mean(axis=0).tolist(), error.tolist(), strict=True)
                means = {name: {"mean": round(mean, 4), "standard_error": round(e, 4)} for name, mean, e in named}
                rows.append({"method": method, "keyframe_every": every, **means})
    return rows


def plot(rows: Sequence[dict[str, Any]], result: VideoResult, file: Path) -> None:
    """Quality by how many frames are painted, one line a method."""
    panels = {
        "border_psnr_db": "border against the truth, PSNR dB (higher is better)",
        "flicker_levels": "flicker, levels of 255 (lower is better)",
        "seam_ratio": "steps at the seam to those elsewhere (1 is best)",
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axis, (field, title) in zip(axes, panels.items(), strict=True):
        for method in METHODS:
            shared = 1 if method == "live" else 0  # on every frame it is what look-ahead is
            points = [row for row in rows if row["method"] == method or row["keyframe_every"] == shared]
            axis.plot(
                [row["keyframe_every"] for row in points], [row[field]["mean"] for row in points],
                marker="o", label=method, color=COLOURS[method],
            )  # fmt: skip
        if field != "border_psnr_db":
            truth = float(np.mean([getattr(each, field) for each in result.truths]))
            axis.axhline(truth, linestyle=":", color="black", label="the truth itself")
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="painted: 1 frame in", xscale="log", xticks=[1, 2, 5, 10], xticklabels=["1", "2", "5", "10"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def pictures(painter: Painter, clips: Sequence[Clip], painting: Painting, index: int) -> list[Picture]:
    """Frame `index` of clips, a clip a row: the input in its place, then what SHOWN says."""
    layout, found = layout_for(painter.size, SCALE), []
    for clip in clips:
        given = np.full_like(clip.frames[index], 255)
        given[layout.centre] = clip.frames[index][layout.centre]
        found.append(given)
        for method, every in SHOWN:
            if method == "truth":
                found.append(clip.frames[index])
            else:
                found.append(shown(painter, layout, clip, painting, SCALE, every, method, [])[0][index])
    return found


def worst_first(scores: Sequence[Score]) -> list[str]:
    """The clips' names by their border's PSNR at an interval of 5, the worst first."""
    five = [each for each in scores if (each.method, each.keyframe_every) == ("look-ahead", 5)]
    return [each.clip for each in sorted(five, key=lambda score: score.border_psnr_db)]


def main() -> None:
    """Measure, write the result and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="the folder for video.png and video-quality.png")
    parser.add_argument("--clips", type=int, default=len(CLIPS))
    parser.add_argument("--frames", type=int, default=41)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--drift-keyframes", type=int, default=50)
    arguments = parser.parse_args()
    painting = Painting(arguments.steps, guidance=arguments.guidance)
    machine, cpu = describe_machine(), CpuShare()
    bundle = str(arguments.bundle)
    with open_bundle(arguments.bundle) as zoom:
        clips = [make_clip(index, arguments.frames, zoom.size[0]) for index in range(arguments.clips)]
        painter = Painter(zoom.inpainting)
        result = measure_video(painter, clips, painting, SCALE, on_progress=lambda text: print(text, file=sys.stderr))
        rows = summary(result)
        drifted = measure_drift(zoom, *drift_picture(zoom.size[0]), painting, arguments.drift_keyframes)
        report = {
            "command": shlex.join(["python", *(word if word != bundle else Path(word).name for word in sys.argv)]),
            "bundle": zoom.bundle.path.name,
            "source_sha256": zoom.bundle.manifest.source.sha256,
            "size": list(zoom.size),
            "fps": FPS,
            "steps": arguments.steps,
            "guidance": arguments.guidance,
            "machine": msgspec.to_builtins(machine),
            "other_cpu_fraction": cpu.of_others(),
            "summary": rows,
            **msgspec.to_builtins(result),
            "drift": msgspec.to_builtins(drifted),
        }
        with atomic_file(arguments.out) as partial:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        if arguments.pictures:
            plot(rows, result, arguments.pictures / "video-quality.png")
            order = worst_first(result.scores)
            chosen = [clip for name in order for clip in clips if clip.name == name and "still" not in name][::2]
            found = pictures(painter, chosen, painting, arguments.frames * 4 // 5 + 1)
            save_png(film_strip(found, columns=1 + len(SHOWN)), arguments.pictures / "video.png")


if __name__ == "__main__":
    main()
