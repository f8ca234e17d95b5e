"""neural-compressor's weight compression of the PyTorch module: 4 bits in blocks for linear layers, to the nearest."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from harness import arguments, feeds, peak_rss_bytes, report
from neural_compressor.torch.quantization import RTNConfig, convert, prepare


def run_held_out(model: torch.nn.Module, held_out: Path, outputs: Path) -> list[float]:
    """Leave the output of each run in `outputs`; the seconds that each took."""
    seconds = []
    for number, given in enumerate(feeds(held_out)):
        tensors = {name: torch.from_numpy(array) for name, array in given.items()}
        started = time.monotonic()
        with torch.inference_mode():
            made = model(**tensors, return_dict=False)[0].numpy()
        seconds.append(round(time.monotonic() - started, 4))
        np.save(outputs / f"{number:05}.npy", made)
    return seconds


def main() -> None:
    """Compress the weights of linear layers, save the module, and run it: only PyTorch can."""
    args = arguments(__doc__)
    model = UNet2DConditionModel.from_pretrained(args.checkpoint / "unet", torch_dtype=torch.float32).eval()
    config = RTNConfig(dtype="int", bits=4, group_size=64, use_sym=True)
    model = convert(prepare(model, config))
    model.save(str(args.out))
    compressed, peak = time.monotonic(), peak_rss_bytes()
    seconds = run_held_out(model, args.held_out, args.outputs)
    report(
        "", ["neural-compressor", "torch", "diffusers"], peak_rss_bytes=peak, step_seconds=seconds,
        running_seconds=round(time.monotonic() - compressed, 2),
    )  # fmt: skip


if __name__ == "__main__":
    main()
