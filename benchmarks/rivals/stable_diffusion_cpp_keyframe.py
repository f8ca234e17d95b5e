"""stable-diffusion.cpp's inpainting: paints a picture for each line that it is given, and says how long it took.

python benchmarks/rivals/stable_diffusion_cpp_keyframe.py --model FILE --picture PNG --mask PNG --prompt TEXT ...
"""

from __future__ import annotations

import os
from typing import Any

from harness import keyframe_arguments, serve_keyframes
from PIL import Image
from stable_diffusion_cpp import StableDiffusion


def main() -> None:
    """Load the checkpoint, then serve."""
    args = keyframe_arguments(__doc__, wtype="default")
    model = StableDiffusion(
        model_path=str(args.model), wtype=args.wtype, n_threads=os.cpu_count() or 1, verbose=False, flash_attn=True,
        diffusion_flash_attn=True,
    )  # fmt: skip
    picture, mask = Image.open(args.picture).convert("RGB"), Image.open(args.mask).convert("L")

    def paint() -> Any:
        return model.generate_image(
            args.prompt, init_image=picture, mask_image=mask, width=picture.width, height=picture.height, strength=1.0,
            sample_steps=args.steps, cfg_scale=args.guidance, seed=0,
        )[0]  # fmt: skip

    serve_keyframes(paint, ("stable-diffusion-cpp-python",), args.out)


if __name__ == "__main__":
    main()
