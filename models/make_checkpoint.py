"""Write a checkpoint of full size with random weights: for sizes, memory and speed, never for quality.

    python models/make_checkpoint.py sd2-inpainting --dtype float16 --out /tmp/sd2

The configurations are the public ones, so shapes, parameters and file sizes are those of the real checkpoints.
Weights are drawn so that activations keep their scale through the network, one tensor at a time: memory stays
far below the model's size. The tokenizer is the demo model's, in the real model's vocabulary size.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.progress import track
from transformers import CLIPTextConfig, CLIPTextModel

DEMO = Path(__file__).parent / "demo"
SEED = 1

UNET = {
    "sample_size": 64,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
MODELS = {
    "sd2-inpainting": {
        "unet": {
            **UNET, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True,
        },
        "text_encoder": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
    },
    "sd1.5-inpainting": {
        "unet": {**UNET, "attention_head_dim": 8, "cross_attention_dim": 768},
        "text_encoder": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
        },
    },
}  # fmt: skip
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 512, "pad_token_id": 1}


def empty_models(name: str) -> dict[str, torch.nn.Module]:
    """The parts of a checkpoint on the meta device."""
    model = MODELS[name]
    with torch.device("meta"):
        return {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, **model["text_encoder"])),
            "unet": UNet2DConditionModel(**model["unet"]),
            "vae": AutoencoderKL(**VAE),
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
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2))
    shutil.copytree(DEMO / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
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
