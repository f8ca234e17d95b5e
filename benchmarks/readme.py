"""The numbers on the pages, made from committed results: `python -m outzoom.benchmarks.readme` writes them in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import (
    bench_page,
    compression_page,
    demo_page,
    live_page,
    memory_page,
    qnn_page,
    targets_page,
    video_page,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Sections = dict[str, tuple[str, Callable[[dict[str, Any]], str]]]
PAGES: dict[str, Sections] = {
    "README.md": {
        "demo-bench": ("demo-bench.json", bench_page.demo_bench),
        "demo-recipes": ("demo-recipes.json", demo_page.demo_recipes),
        "demo-quality": ("demo-quality.json", demo_page.demo_quality),
        "full-size": ("full-size.json", bench_page.full_size),
    },
    "docs/painting.md": {
        "demo-switches": ("demo-switches.json", demo_page.demo_switches),
        "full-size-keyframe": ("full-size-keyframe.json", bench_page.keyframe),
        "full-size-limits": ("full-size-limits.json", bench_page.keyframe),
    },
    "docs/snapdragon.md": {"qnn-demo": ("qnn-demo.json", qnn_page.contexts)},
    "docs/video.md": {
        "demo-video": ("demo-video.json", video_page.demo_video),
        "rendering": ("rendering.json", video_page.rendering),
    },
    "docs/devices.md": {
        "targets": ("targets.json", targets_page.targets),
        "full-size-targets": ("full-size-targets.json", targets_page.targets),
        "opening": ("opening.json", targets_page.opening),
        "full-size-opening": ("full-size-opening.json", targets_page.opening),
    },
    "docs/benchmarks.md": {
        "demo-keyframe": ("demo-keyframe.json", bench_page.keyframe),
        "demo-repeat": ("demo-repeat.json", bench_page.demo_repeat),
        "full-size-bench": ("full-size-bench.json", bench_page.full_size_bench),
        "full-size-rivals": ("full-size-rivals.json", bench_page.keyframe),
    },
    "docs/tensorrt.md": {
        "tensorrt-demo": ("tensorrt-demo.json", targets_page.tensorrt),
        "tensorrt-full-size": ("tensorrt-full-size.json", targets_page.tensorrt),
    },
    "docs/live.md": {"live": ("live.json", live_page.live)},
    "docs/compression.md": {
        "demo-compression": ("demo-compression.json", compression_page.compression),
        "demo-equal-bits": ("demo-equal-bits.json", demo_page.demo_recipes),
        "full-size-int8-step": ("full-size-int8-step.json", compression_page.compression),
        "full-size-compression": ("full-size-compression.json", compression_page.compression),
    },
    "docs/memory.md": {
        "strategies": ("memory.json", memory_page.strategies),
        "mappings": ("memory.json", memory_page.mappings),
        "papers": ("memory.json", memory_page.papers),
        "zigzag": ("memory.json", memory_page.zigzag),
        "speed": ("memory.json", memory_page.speed),
    },
}


def updated(page: str, text: str) -> str:
    """The text of a page, every section between `<!-- NAME -->` and `<!-- end of NAME -->` made anew."""
    for name, (file, make) in PAGES[page].items():
        result = RESULTS / file
        made = make(json.loads(result.read_text("utf-8"))) if result.exists() else "Not measured yet."
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        parts = re.split(f"{begin}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"{page} has {len(parts) - 1} sections {begin} ... {end}, expected one")
        text = f"{begin}\n{made}\n{end}".join(parts)
    return text


if __name__ == "__main__":
    for page in PAGES:
        file = ROOT / page
        file.write_text(updated(page, file.read_text("utf-8")), "utf-8")
