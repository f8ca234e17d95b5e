"""optimum's inpainting pipelines: paints a picture for each line that it is given, and says how long it took.

    python benchmarks/rivals/optimum_keyframe.py --model EXPORTED --picture PNG --mask PNG --prompt TEXT --out PNG ...

EXPORTED is what `optimum-cli export onnx` (ONNX Runtime runs it) or `optimum-cli export openvino` made of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import keyframe_arguments, serve_keyframes
from PIL import Image


def pipeline_of(model: Path, width: int, height: int) -> tuple[Any, tuple[str, ...]]:
    """The pipeline for what the folder holds, at one size where that makes it faster, and the packages that run it."""
    if (model / "unet" / "model.onnx").exists():
        from optimum.onnxruntime import ORTStableDiffusionInpaintPipeline

        return ORTStableDiffusionInpaintPipeline.from_pretrained(model), ("optimum-onnx", "onnxruntime")
    from optimum.intel import OVStableDiffusionInpaintPipeline

    pipeline = OVStableDiffusionInpaintPipeline.from_pretrained(model, compile=False)
    pipeline.reshape(1, height, width)
    pipeline.compile()
    return pipeline, ("optimum-intel", "openvino")


def main() -> None:
    """Load the pipeline, then serve."""
    args = keyframe_arguments(__doc__)
    picture, mask = Image.open(args.picture).convert("RGB"), Image.open(args.mask).convert("L")
    pipeline, packages = pipeline_of(args.model, *picture.size)
    pipeline.set_progress_bar_config(disable=True)

    def paint() -> Any:
        return pipeline(
            args.prompt, image=picture, mask_image=mask, width=picture.width, height=picture.height, strength=1.0,
            num_inference_steps=args.steps, guidance_scale=args.guidance,
        ).images[0]  # fmt: skip

    serve_keyframes(paint, packages, args.out)


if __name__ == "__main__":
    main()
