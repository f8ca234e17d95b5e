"""What each recipe costs and what it saves, on the demo model: size, fidelity, nearness to the truth, and time.

    outzoom export-all --target onnxruntime --target openvino-cpu --recipe fp32 --recipe int8 ... --out BUNDLES
    python models/evaluate_recipes.py BUNDLES --out benchmarks/results/demo-recipes.json --pictures docs

Every bundle paints the same keyframes, of scenes that training never saw, from the same noise as the fp32 bundle of
its target, and is compared with that one's and with the truth. Then the UNets of a target run in turn, a step each.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from evaluate_demo import FIRST_UNSEEN_SEED, KINDS, SCALE, WINDOWS, Picture, summary

import scenes
from outzoom.benchmarks.machine import describe_machine
from outzoom.benchmarks.measure import random_feeds
from outzoom.benchmarks.quality import border_psnr_db, border_ssim, psnr_db, ssim
from outzoom.benchmarks.results import Latency, ratio_of
from outzoom.runtime import Painting, film_strip, open_bundle, open_manifest, save_png
from outzoom.runtime.backends import Engine
from outzoom.runtime.geometry import outside_mask

REFERENCE = "fp32"
SHOWN_SCENES = 4
WARM_UPS = 3


def unseen_scenes(count: int, side: int) -> Iterator[tuple[Picture, Picture, str, int]]:
    """What is given, what is around it in truth, the caption and the seed."""
    for i in range(count):
        seed = FIRST_UNSEEN_SEED + i
        rng = np.random.default_rng(seed)
        window = scenes.Window(*(float(rng.uniform(*bounds)) for bounds in WINDOWS))
        known, caption = scenes.render(KINDS[i % 4], seed, window, side)
        yield known, scenes.render(KINDS[i % 4], seed, window.widened(1 / SCALE), side)[0], caption, seed


def painted(bundle: Path, count: int, painting: dict[str, Any]) -> list[Picture]:
    """The keyframe around each of the scenes."""
    made = []
    with open_bundle(bundle) as zoom:
        for known, _, caption, seed in unseen_scenes(count, zoom.size[0]):
            keyframes = zoom.keyframes(known, caption, SCALE, Painting(seed=seed, **painting))
            next(keyframes)
            made.append(next(keyframes))
    return made


def fidelity(pictures: list[Picture], reference: list[Picture], truths: list[Picture]) -> dict[str, Any]:
    """How near keyframes are to the reference's, and their borders to the truth."""
    mask = outside_mask(pictures[0].shape[1::-1], SCALE)
    pairs = list(zip(pictures, reference, strict=True))
    same = all(np.array_equal(a, b) for a, b in pairs)
    return {
        "keyframe_psnr_db": None if same else summary([psnr_db(b, a) for a, b in pairs]),
        "keyframe_ssim": summary([ssim(b, a) for a, b in pairs]),
        "border_psnr_db": None if same else summary([border_psnr_db(b, a, mask) for a, b in pairs]),
        "border_ssim": summary([border_ssim(b, a, mask) for a, b in pairs]),
        "border_psnr_to_truth_db": summary([border_psnr_db(t, a, mask) for t, a in zip(truths, pictures, strict=True)]),
    }


def step_latencies(bundles: list[Path], rounds: int) -> dict[str, dict[str, Any]]:
    """The time of a UNet step of each bundle, all of them in turn, and its ratio to the first's in the same round."""
    loaded: list[tuple[Engine, dict[str, Any]]] = []
    zooms = [open_bundle(bundle, verify=False) for bundle in bundles]
    for zoom in zooms:
        loaded.append((zoom.inpainting.engine("unet"), random_feeds(zoom.inpainting, "unet")))
    samples_ms: list[list[float]] = [[] for _ in bundles]
    for number in range(WARM_UPS + rounds):
        for samples, (engine, feeds) in zip(samples_ms, loaded, strict=True):
            started = time.perf_counter()
            engine.run(feeds)
            if number >= WARM_UPS:
                samples.append((time.perf_counter() - started) * 1e3)
    for zoom in zooms:
        zoom.close()
    return {
        bundle.name: {
            "median_ms": (latency := Latency.of(samples)).median_ms, "p10_ms": latency.p10_ms, "p90_ms": latency.p90_ms,
            "ratio_to_fp32": ratio_of(samples, samples_ms[0]),
        }
        for bundle, samples in zip(bundles, samples_ms, strict=True)
    }  # fmt: skip


def main() -> None:
    """Paint, compare, time; write the result and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, help="the folder that export-all wrote into")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()

    machine, load = describe_machine(), psutil.getloadavg()[0]
    painting = {"steps": args.steps, "guidance": args.guidance}
    references = sorted(args.bundles.glob(f"*-{REFERENCE}"))
    figures: dict[str, dict[str, Any]] = {}
    for exact in references:
        target = exact.name.removesuffix(f"-{REFERENCE}")
        bundles = [exact, *sorted(path for path in args.bundles.glob(f"{target}-*") if path != exact)]
        latencies = step_latencies(bundles, args.rounds)
        made = {bundle: painted(bundle, args.scenes, painting) for bundle in bundles}
        truths = [truth for _, truth, _, _ in unseen_scenes(args.scenes, made[exact][0].shape[0])]
        for bundle in bundles:
            manifest = open_manifest(bundle, verify=False).manifest
            opened = open_manifest(bundle, verify=False)
            figures[bundle.name] = {
                "size_bytes": opened.size_bytes,
                "component_size_bytes": {name: opened.component_size_bytes(name) for name in manifest.components},
                "parity_psnr_db": {name: one.parity_psnr_db for name, one in manifest.components.items()},
                **fidelity(made[bundle], made[exact], truths),
                "unet_step": latencies[bundle.name],
            }
            print(json.dumps({bundle.name: figures[bundle.name]}), file=sys.stderr, flush=True)
        columns = [truths, *(made[bundle] for bundle in bundles)]
        strip = film_strip([column[i] for i in range(SHOWN_SCENES) for column in columns], columns=len(columns))
        save_png(strip, args.pictures / f"recipes-{target}.png")
    result = {
        "command": shlex.join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"),
        "checkpoint_sha256": open_manifest(references[0], verify=False).manifest.source.sha256,
        "machine": machine.cpu_model, "cores": machine.usable_cores, "load_before": load, "packages": machine.packages,
        "scenes": args.scenes, **painting, "rounds": args.rounds, "bundles": figures,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
