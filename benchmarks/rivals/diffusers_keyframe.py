"""diffusers' inpainting pipeline: paints a picture for each line that it is given, and says how long it took.

python benchmarks/rivals/diffusers_keyframe.py --model CHECKPOINT --picture PNG --mask PNG --prompt TEXT ...
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionInpaintPipeline
from harness import keyframe_arguments, serve_keyframes
from PIL import Image


def main() -> None:
    """Load the pipeline, then serve."""
    args = keyframe_arguments(__doc__, dtype="float32")
    kind = getattr(torch, args.dtype)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(args.model, torch_dtype=kind, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture, mask = Image.open(args.picture).convert("RGB"), Image.open(args.mask).convert("L")

    def paint() -> Any:
        return pipeline(
            args.prompt, image=picture, mask_image=mask, width=picture.width, height=picture.height, strength=1.0,
            num_inference_steps=args.steps, guidance_scale=args.guidance,
        ).images[0]  # fmt: skip

    serve_keyframes(paint, ("diffusers", "torch"), args.out)


if __name__ == "__main__":
    main()
