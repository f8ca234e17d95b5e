"""What each way to paint a keyframe in less time gains and costs, on the demo model, alone and together.

    outzoom export-all --target openvino-cpu --recipe int8 --shallow 1 --out BUNDLES
    python models/evaluate_switches.py BUNDLES/openvino-cpu-int8 --out benchmarks/results/demo-switches.json

Every variant paints the keyframes of scenes that training never saw, from the same noise as the preset `quality`, and
is compared with what that one paints and with the truth. Each scene is painted by all variants in turn: times are
ratios to `quality` in the same turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from evaluate_demo import SCALE, Picture
from evaluate_recipes import fidelity, unseen_scenes

from outzoom.benchmarks.machine import describe_machine
from outzoom.benchmarks.results import ratio_of
from outzoom.runtime import PRESETS, Painting, Zoom, film_strip, open_bundle, save_png

REFERENCE = "quality"
SHOWN_SCENES = 4
ALONE: dict[str, dict[str, Any]] = {
    "guided in the first 60%": {"guided": (0.0, 0.6)},
    "guided in the last 60%": {"guided": (0.4, 1.0)},
    "guided from 20% to 60%": {"guided": (0.2, 0.6)},
    "whole UNet every 2nd step": {"whole_every": 2},
    "whole UNet every 3rd step": {"whole_every": 3},
    "whole UNet every 5th step": {"whole_every": 5},
    "warm start at 0.9": {"strength": 0.9},
    "warm start at 0.7": {"strength": 0.7},
    "DPM-Solver++, 20 steps": {"scheduler": "dpm-solver"},
    "DPM-Solver++, 10 steps": {"scheduler": "dpm-solver", "steps": 10},
    "DPM-Solver++, 6 steps": {"scheduler": "dpm-solver", "steps": 6},
    "known part put back in every step": {"blend": True},
}
COMMAND = "python models/evaluate_switches.py BUNDLE --out RESULT.json"


def main() -> None:
    """Paint with every variant, compare, and write the result and a strip of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="also write a strip of what each preset paints, a PNG")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--more", type=json.loads, default={}, help="more variants, as JSON: {NAME: {FIELD: VALUE}}")
    args = parser.parse_args()

    machine, load = describe_machine(), psutil.getloadavg()[0]
    variants = {name: dataclasses.asdict(preset) for name, preset in PRESETS.items()}
    variants |= {name: variants[REFERENCE] | changes for name, changes in {**ALONE, **args.more}.items()}
    with open_bundle(args.bundle) as zoom:
        made, seconds = painted(zoom, args.scenes, args.guidance, variants)
        truths = [truth for _, truth, _, _ in unseen_scenes(args.scenes, zoom.size[0])]
        manifest = zoom.bundle.manifest
    figures = {
        name: {
            "time_ratio": ratio_of(seconds[name], seconds[REFERENCE]),
            "median_keyframe_ms": round(float(np.median(seconds[name])) * 1e3, 1),
            **fidelity(made[name], made[REFERENCE], truths),
        }
        for name in variants
    }
    result = {
        "command": COMMAND, "date": time.strftime("%Y-%m-%d"), "machine": machine.cpu_model,
        "cores": machine.usable_cores, "load_before": round(load, 2), "packages": machine.packages,
        "bundle": f"{manifest.target}-{manifest.recipe.name}", "checkpoint_sha256": manifest.source.sha256,
        "scenes": args.scenes, "guidance": args.guidance, "variants": figures,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if args.picture:
        rows = [film_strip([truths[i], *(made[name][i] for name in PRESETS)]) for i in range(SHOWN_SCENES)]
        save_png(np.concatenate(rows), args.picture)


def painted(
    zoom: Zoom, count: int, guidance: float, variants: dict[str, dict[str, Any]]
) -> tuple[dict[str, list[Picture]], dict[str, list[float]]]:
    """What each variant paints around each scene, and in how many seconds; the first scene is painted twice."""
    made: dict[str, list[Picture]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    scenes = list(unseen_scenes(count, zoom.size[0]))
    for turn, (known, _, caption, seed) in enumerate([scenes[0], *scenes]):
        for name, changes in variants.items():
            painting = Painting(**{**changes, "guidance": guidance, "seed": seed})
            keyframes = zoom.keyframes(known, caption, SCALE, painting)
            next(keyframes)
            started = time.perf_counter()
            picture = next(keyframes)
            if turn:
                made[name].append(picture)
                seconds[name].append(time.perf_counter() - started)
    return made, seconds


if __name__ == "__main__":
    sys.exit(main())
