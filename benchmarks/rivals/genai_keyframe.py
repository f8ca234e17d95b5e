"""openvino.genai's inpainting pipeline: paints a picture for each line that it is given, and says how long it took.

    python benchmarks/rivals/genai_keyframe.py --model BUNDLE --picture PNG --mask PNG --prompt TEXT --out PNG ...

BUNDLE is one built with --interop, or what optimum-cli exports; the tokenizer that genai wants in it is made beside it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov
import openvino_genai
import openvino_tokenizers
from harness import keyframe_arguments, serve_keyframes
from PIL import Image
from transformers import AutoTokenizer


def with_tokenizer(model: Path, folder: Path) -> Path:
    """The model's files, linked into `folder`, and its tokenizer as the model that genai takes."""
    for source in model.iterdir():
        (folder / source.name).symlink_to(source.absolute())
    tokenizer = folder / "tokenizer"
    tokenizer.unlink()
    tokenizer.mkdir()
    for source in (model / "tokenizer").iterdir():
        (tokenizer / source.name).symlink_to(source.absolute())
    made = openvino_tokenizers.convert_tokenizer(AutoTokenizer.from_pretrained(tokenizer))
    ov.save_model(made, tokenizer / "openvino_tokenizer.xml")
    return folder


def main() -> None:
    """Load the pipeline, then serve."""
    args = keyframe_arguments(__doc__)
    with TemporaryDirectory() as scratch:
        pipeline = openvino_genai.InpaintingPipeline(with_tokenizer(args.model, Path(scratch)))
        picture, mask = (np.asarray(Image.open(file).convert("RGB"))[None] for file in (args.picture, args.mask))
        _, height, width, _ = picture.shape
        pipeline.reshape(1, height, width, args.guidance)
        pipeline.compile("CPU")

    def paint() -> Image.Image:
        made = pipeline.generate(
            args.prompt, ov.Tensor(picture), ov.Tensor(mask), num_inference_steps=args.steps,
            guidance_scale=args.guidance, width=width, height=height, strength=1.0,
        )  # fmt: skip
        return Image.fromarray(made.data[0])

    serve_keyframes(paint, ("openvino", "openvino-genai", "openvino-tokenizers"), args.out)


if __name__ == "__main__":
    main()
