"""Judge the demo model on scenes that training never saw, where the true border is known.

    python models/evaluate_demo.py BUNDLE --out benchmarks/results/demo-quality.json --pictures docs

Each scene is rendered twice: the window that the model is given, and the window twice as wide, which is the
truth for what the model paints around it. The border is compared with the truth; so are the borders that edge
replication and the mean colour give, and those painted from a wrong caption and from none.

A painted border is one of many that might be there, so even a perfect one differs from the truth by twice the least
mean square error that any border has; that one is blurred (Blau and Michaeli, "The Perception-Distortion Tradeoff",
CVPR 2018). With one step the model gives what it expects, which is that blurred border; with more it paints one.
How near a painted border can come at all is shown by another true one: the same world, hills, horizon, moon and all,
but for small things (flowers, fish, corals, stars, clouds, pines) beyond the window, which are somewhere else.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import scenes
from outzoom.benchmarks.machine import describe_machine
from outzoom.benchmarks.quality import border_psnr_db, border_ssim, psnr_db, seam_ratio
from outzoom.runtime import Painting, Zoom, film_strip, open_bundle, save_png
from outzoom.runtime.geometry import outside_mask, paste_centered

FIRST_UNSEEN_SEED = 1_000_000  # training uses worlds below 100,000
SCALE = 0.5
WINDOWS = ((-0.5, 0.5), (-0.2, 0.4), (0.5, 0.9))  # bounds of x, y and half the side
KINDS = list(scenes.SCENES)
FEW_STEPS = "right caption, unguided, 5 steps"
ONE_STEP = "right caption, unguided, 1 step"
REDRAWN = "the truth, small things elsewhere"
SCATTERED = ("reef", "night", "meadow")  # the kinds that are made of small things; houses stand in rows

Picture = np.ndarray
Painter = Callable[[Picture, str, str, int], Picture]


def painter(zoom: Zoom, caption: str, guidance: float, steps: int) -> Painter:
    """Paints with the model: from the right caption, a wrong one, or none."""

    def paint(known: Picture, right: str, wrong: str, seed: int) -> Picture:
        prompt = {"right": right, "wrong": wrong, "none": ""}[caption]
        keyframes = zoom.keyframes(known, prompt, SCALE, Painting(steps=steps, guidance=guidance, seed=seed))
        next(keyframes)
        return next(keyframes)

    return paint


def shrunk(known: Picture) -> Picture:
    """The known picture in the centre, black around it."""
    return paste_centered(np.zeros_like(known), known, SCALE)


def replicate_edges(known: Picture, *_: object) -> Picture:
    """Baseline: each row and column goes on with its last known pixel."""
    side = known.shape[0]
    inside = np.flatnonzero(~outside_mask((side, side), SCALE)[side // 2])
    picture = shrunk(known)[inside[0] : inside[-1] + 1, inside[0] : inside[-1] + 1]
    return np.pad(picture, ((inside[0], side - 1 - inside[-1]),) * 2 + ((0, 0),), "edge")


def mean_colour(known: Picture, *_: object) -> Picture:
    """Baseline: the known picture's mean colour around it."""
    around = np.broadcast_to(np.rint(known.mean((0, 1))).astype(np.uint8), known.shape)
    return paste_centered(np.ascontiguousarray(around), known, SCALE)


def summary(values: list[float]) -> dict[str, float]:
    """Mean and its standard error."""
    array = np.array(values)
    error = float(array.std(ddof=1)) / len(array) ** 0.5
    return {"mean": round(float(array.mean()), 4), "standard_error": round(error, 4)}


def main() -> None:
    """Paint, compare, write the result and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    args = parser.parse_args()

    machine = describe_machine()
    zoom = open_bundle(args.bundle)
    side = zoom.size[0]
    mask = outside_mask((side, side), SCALE)
    painters: dict[str, Painter] = {
        "right caption, guided": painter(zoom, "right", args.guidance, args.steps),
        "wrong caption, guided": painter(zoom, "wrong", args.guidance, args.steps),
        "right caption, unguided": painter(zoom, "right", 1, args.steps),
        "wrong caption, unguided": painter(zoom, "wrong", 1, args.steps),
        "no caption": painter(zoom, "none", 1, args.steps),
        FEW_STEPS: painter(zoom, "right", 1, 5),
        ONE_STEP: painter(zoom, "right", 1, 1),
        "edge replication": replicate_edges,
        "mean colour": mean_colour,
    }
    scores = {name: {"border_psnr_db": [], "border_ssim": [], "seam_ratio": []} for name in painters}
    scores[REDRAWN] = {"border_psnr_db": [], "border_ssim": [], "seam_ratio": []}
    rows, truth_seams, vae_bound, scattered = [], [], [], []
    started = time.perf_counter()
    for i in range(args.scenes):
        kind, seed = KINDS[i % 4], FIRST_UNSEEN_SEED + i
        rng = np.random.default_rng(seed)
        window = scenes.Window(*(float(rng.uniform(*bounds)) for bounds in WINDOWS))
        known, caption = scenes.render(kind, seed, window, side)
        truth, _ = scenes.render(kind, seed, window.widened(1 / SCALE), side)
        wrong = scenes.render(KINDS[(i + 1 + i // 4 % 3) % 4], seed, window, side)[1]
        pictures = {name: paint(known, caption, wrong, seed) for name, paint in painters.items()}
        elsewhere = scenes.scatter_elsewhere(window, seed)
        redrawn, _ = scenes.render(kind, seed, window.widened(1 / SCALE), side, elsewhere)
        if kind in SCATTERED:
            scattered.append(i)
            pictures[REDRAWN] = paste_centered(redrawn.copy(), known, SCALE)
        for name, picture in pictures.items():
            scores[name]["border_psnr_db"].append(border_psnr_db(truth, picture, mask))
            scores[name]["border_ssim"].append(border_ssim(truth, picture, mask))
            scores[name]["seam_ratio"].append(seam_ratio(picture, mask))
        truth_seams.append(seam_ratio(truth, mask))
        latents = zoom.inpainting.encode_image(truth.astype(np.float32) / 127.5 - 1)
        vae_bound.append(psnr_db(truth, zoom.inpainting.decode(latents)))
        painted_db, edges_db = (
            scores[name]["border_psnr_db"][-1] for name in ("right caption, guided", "edge replication")
        )
        gained = painted_db - edges_db
        painted, misled = pictures["right caption, guided"], pictures["wrong caption, guided"]
        shown = [shrunk(known), painted, truth, replicate_edges(known), misled]
        rows.append((gained, shown, f"{caption} | wrong: {wrong}"))
        print(f"{i + 1}/{args.scenes} {gained:+.1f} dB {caption}", file=sys.stderr, flush=True)

    rows.sort(key=lambda row: -row[0])
    for name, chosen in (("good", rows[:6]), ("bad", rows[-6:])):
        strip = film_strip([picture for row in chosen for picture in row[1]], columns=5)
        save_png(strip, args.pictures / f"demo-{name}.png")
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - started, 1),
        "checkpoint_sha256": zoom.bundle.manifest.source.sha256,
        "bundle": f"{zoom.bundle.manifest.target}-{zoom.bundle.manifest.recipe.name}",
        "machine": machine.cpu_model,
        "packages": machine.packages,
        "scenes": args.scenes,
        "steps": args.steps,
        "guidance": args.guidance,
        "border": {name: {key: summary(values) for key, values in scores[name].items()} for name in painters},
        "gain_over_edge_replication": {name: gain(scores[name], scores["edge replication"]) for name in painters},
        "of_scenes_of_small_things": {
            name: {
                key: summary([values[i] for i in scattered] if name in painters else values)
                for key, values in scores[name].items()
            }
            for name in (REDRAWN, ONE_STEP, "right caption, guided", "edge replication")
        },
        "seam_ratio_of_the_truth": summary(truth_seams),
        "vae_round_trip_psnr_db": summary(vae_bound),
        "share_of_scenes_where": {
            "painted_beats_edge_replication": share(scores, "right caption, guided", "edge replication"),
            "painted_beats_mean_colour": share(scores, "right caption, guided", "mean colour"),
            "one_step_beats_edge_replication": share(scores, ONE_STEP, "edge replication"),
            "right_caption_beats_wrong_guided": share(scores, "right caption, guided", "wrong caption, guided"),
            "right_caption_beats_wrong_unguided": share(scores, "right caption, unguided", "wrong caption, unguided"),
        },
        "captions_of_the_pictures": {"good": [row[2] for row in rows[:6]], "bad": [row[2] for row in rows[-6:]]},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["border"], indent=1))


def gain(one: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """By how much one border is better than the other, scene by scene."""
    return {
        key: summary([a - b for a, b in zip(one[key], other[key], strict=True)])
        for key in ("border_psnr_db", "border_ssim")
    }


def share(scores: dict[str, dict[str, list[float]]], one: str, other: str) -> float:
    """In what share of the scenes `one` has the higher PSNR of the border."""
    a, b = (np.array(scores[name]["border_psnr_db"]) for name in (one, other))
    return round(float((a > b).mean()), 3)


if __name__ == "__main__":
    main()
