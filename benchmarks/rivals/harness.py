"""What the rivals' scripts share: arguments, calibration feeds, the line that tells how it went, painting in turn.

They run in environments that do not have outzoom.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

STARTED = time.monotonic()


def arguments(description: str | None) -> argparse.Namespace:
    """The command line of every rival's script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--onnx", type=Path, required=True, help="the UNet in float32, its weights beside it")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the same UNet for diffusers")
    parser.add_argument("--feeds", type=Path, required=True, help="inputs to calibrate on, an .npz for each run")
    parser.add_argument("--held-out", type=Path, required=True, help="inputs that are not calibrated on")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the compressed model alone")
    parser.add_argument("--outputs", type=Path, required=True, help="for what engines of the script's own make")
    return parser.parse_args()


def feeds(folder: Path) -> Iterator[dict[str, Any]]:
    """The inputs of each run, by name."""
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as stored:
            yield dict(stored)


def peak_rss_bytes() -> int:
    """The most memory that this process had so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def report(model: str, packages: list[str], **more: Any) -> None:
    """Print what the script made, in how many seconds since its start, with how much memory at most."""
    made = {
        "model": model,
        "seconds": round(time.monotonic() - STARTED, 2),
        "peak_rss_bytes": peak_rss_bytes(),
        "packages": {package: version(package) for package in packages},
    }
    print(json.dumps({**made, **more}))


def keyframe_arguments(description: str | None, **more: str) -> argparse.Namespace:
    """The command line of a script that paints keyframes; `more` are arguments of its own, with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "picture", "mask", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def serve_keyframes(paint: Callable[[], Any], packages: Sequence[str], out: Path) -> None:
    """Say that all is loaded, then paint and keep a picture (of Pillow) for each line that comes in."""
    ready = {
        "load_seconds": round(time.monotonic() - STARTED, 2),
        "packages": {name: version(name) for name in packages},
    }
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        made = paint()
        seconds = time.perf_counter() - started
        made.save(out)
        print(json.dumps({"seconds": round(seconds, 3), "peak_rss_bytes": peak_rss_bytes()}), flush=True)
