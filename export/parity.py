"""How near an engine is to the checkpoint's own module, run in float32 by PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.bundle import GUIDANCE
from .checkpoint import PART_OF, Checkpoint
from .components import COMPONENT_SPECS, streamed_part

SEED = 20
TYPICAL = {"timestep": 500, GUIDANCE: 7.5}

Feeds = dict[str, NDArray[Any]]


def tensor_psnr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the reference's range; infinite when equal.

    Higher is better. Raises ValueError when the shapes differ. Not-a-number anywhere gives minus infinity.
    """
    if reference.shape != other.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {other.shape}")
    difference = reference.astype(np.float64) - other.astype(np.float64)
    mean_square = float(np.mean(difference * difference))
    if not math.isfinite(mean_square):
        return -math.inf
    peak = float(reference.max()) - float(reference.min())
    if mean_square == 0:
        return math.inf
    return 10 * math.log10(peak * peak / mean_square) if peak > 0 else -math.inf


def probe(checkpoint: Checkpoint, component: str, shapes: dict[str, tuple[int, ...]]) -> Feeds:
    """Inputs of these shapes that a component might meet, the same every time."""
    rng = np.random.default_rng(SEED)
    feeds: Feeds = {}
    for name, shape in shapes.items():
        if name == "input_ids":
            feeds[name] = rng.integers(0, checkpoint.config("text_encoder")["vocab_size"], shape)
        elif name in TYPICAL:
            feeds[name] = np.full(shape, TYPICAL[name], np.float32)
        else:
            feeds[name] = rng.standard_normal(shape, np.float32)
    return feeds


def reference_output(checkpoint: Checkpoint, component: str, feeds: Feeds) -> NDArray[Any]:
    """What the checkpoint's module makes of the inputs, in float32, one layer's weights in memory at a time."""
    spec = COMPONENT_SPECS[component]
    module = spec.module(streamed_part(checkpoint, PART_OF[component])).eval()
    with torch.inference_mode():
        output: NDArray[Any] = module(*(torch.from_numpy(feed) for feed in feeds.values())).numpy()
    return output
