"""What the rivals' scripts share: the arguments, the calibration feeds, and the line that tells how it went.

They run in environments that do not have outzoom.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
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
