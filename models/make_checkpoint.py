"""Write a checkpoint of full size with random weights: for sizes, memory and speed, never for quality.

    python models/make_checkpoint.py sd2-inpainting --dtype float16 --out /tmp/sd2

The configurations are the public ones, from models/configs, so shapes, parameters and file sizes are those of the
real checkpoints. Weights are drawn so that activations keep their scale through the network, one tensor at a time:
memory stays far below the model's size. The tokenizer is the demo model's, in the real model's vocabulary size.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.progress import track
from transformers import CLIPTextConfig, CLIPTextModel

DEMO = Path(__file__).parent / "demo"
SEED = 1
PARTS = ("text_encoder", "unet", "vae")
CONFIGS = Path(__file__).parent / "configs"
MODELS = sorted(folder.name for folder in CONFIGS.iterdir())


def empty_models(name: str) -> dict[str, torch.nn.Module]:
    """The parts of a checkpoint on the meta device."""
    config = {part: json.loads((CONFIGS / name / part / "config.json").read_text()) for part in PARTS}
    with torch.device("meta"):
        return {
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(config["text_encoder"])),
            "unet": UNet2DConditionModel.from_config(config["unet"]),
            "vae": AutoencoderKL.from_config(config["vae"]),
        }


def random_weight(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Ones and zeros for normalizations and biases; the others normal with variance 1 / fan-in."""
    if len(shape) < 2:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    if "embedding" in name and len(shape) == 2 and "time" not in name:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return rng.standard_normal(shape, np.float32) * np.float32(1 / math.sqrt(math.prod(shape[1:])))


def write_safetensors(
    file: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Random weights of these names and shapes, written tensor by tensor.

    Source: the safetensors format: 8 bytes little-endian header length, a JSON header, then the data.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": {2: "F16", 4: "F32"}[dtype.itemsize], "shape": shape,
                        "data_offsets": [offset, offset + size]}  # fmt: skip
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in track(shapes.items(), description=file.parent.name, total=len(shapes)):
            stream.write(random_weight(name, shape, rng).astype(dtype).tobytes())


def write_checkpoint(name: str, dtype: str, out: Path) -> None:
    """A diffusers directory at `out`."""
    rng = np.random.default_rng(SEED)
    for part, model in empty_models(name).items():
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        if part == "text_encoder":
            (folder / "config.json").write_text(model.config.to_json_string())
        else:
            model.save_config(folder)
        shapes = {key: tuple(value.shape) for key, value in sorted(model.state_dict().items())}
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_safetensors(folder / f"{stem}.safetensors", shapes, np.dtype(dtype), rng)
    shutil.copytree(CONFIGS / name / "scheduler", out / "scheduler", dirs_exist_ok=True)
    shutil.copytree(DEMO / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_checkpoint(arguments.model, arguments.dtype, arguments.out)
