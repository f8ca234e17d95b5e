"""The four models as the runtime calls them: which tensors go in, which come out, under which names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from .checkpoint import Checkpoint


class TextEncoder(nn.Module):
    """input_ids (1, tokens) int64 -> last_hidden_state (1, tokens, width)."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Positions are made in the graph: the module's own are a buffer without data on the meta device."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        out: Tensor = self.text_encoder(input_ids=input_ids, position_ids=positions).last_hidden_state
        return out


class UNet(nn.Module):
    """sample (1, 9, h, w), timestep (1,), encoder_hidden_states (1, tokens, width) -> out_sample (1, 4, h, w)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """One denoising prediction."""
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class VaeEncoder(nn.Module):
    """sample (1, 3, H, W) in -1..1 -> latent_parameters (1, 8, h, w): mean and log variance, unscaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        """The parameters of the posterior."""
        out: Tensor = self.quant_conv(self.encoder(sample))
        return out


class VaeDecoder(nn.Module):
    """latent_sample (1, 4, h, w), unscaled -> sample (1, 3, H, W), about -1..1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latent_sample: Tensor) -> Tensor:
        """The picture."""
        out: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return out


def empty_part(checkpoint: Checkpoint, part: str) -> nn.Module:
    """A part of the checkpoint built from its configuration alone; make it on the meta device."""
    config = checkpoint.config(part)
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig.from_dict(config))
    model: nn.Module = (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(config)
    return model


def load_part(checkpoint: Checkpoint, part: str) -> nn.Module:
    """A part of the checkpoint with its weights in float32, as diffusers and transformers load it."""
    cls = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    dtype = {"dtype" if part == "text_encoder" else "torch_dtype": torch.float32}
    model: nn.Module = cls.from_pretrained(
        checkpoint.path / part, use_safetensors=True, local_files_only=True, variant=checkpoint.variant(part), **dtype
    )
    return model.float().eval()  # diffusers leaves a float64 tensor as it is


@dataclass(frozen=True)
class ComponentSpec:
    """A component: the checkpoint part that holds its weights, its module around that part, its tensors."""

    part: str
    module: Callable[[Any], nn.Module]
    inputs: Callable[[Checkpoint, int, int], dict[str, tuple[tuple[int, ...], torch.dtype]]]
    output: str


def _text_inputs(checkpoint: Checkpoint, width: int, height: int) -> dict[str, Any]:
    tokens = checkpoint.config("text_encoder")["max_position_embeddings"]
    return {"input_ids": ((1, tokens), torch.int64)}


def _latent_size(checkpoint: Checkpoint, width: int, height: int) -> tuple[int, int]:
    return height // checkpoint.vae_scale_factor, width // checkpoint.vae_scale_factor


def _unet_inputs(checkpoint: Checkpoint, width: int, height: int) -> dict[str, Any]:
    text, unet = checkpoint.config("text_encoder"), checkpoint.config("unet")
    return {
        "sample": ((1, unet["in_channels"], *_latent_size(checkpoint, width, height)), torch.float32),
        "timestep": ((1,), torch.float32),
        "encoder_hidden_states": (
            (1, text["max_position_embeddings"], unet["cross_attention_dim"]),
            torch.float32,
        ),
    }


def _encoder_inputs(checkpoint: Checkpoint, width: int, height: int) -> dict[str, Any]:
    return {"sample": ((1, checkpoint.config("vae")["in_channels"], height, width), torch.float32)}


def _decoder_inputs(checkpoint: Checkpoint, width: int, height: int) -> dict[str, Any]:
    channels = checkpoint.config("vae")["latent_channels"]
    return {"latent_sample": ((1, channels, *_latent_size(checkpoint, width, height)), torch.float32)}


COMPONENT_SPECS: dict[str, ComponentSpec] = {
    "text_encoder": ComponentSpec("text_encoder", TextEncoder, _text_inputs, "last_hidden_state"),
    "unet": ComponentSpec("unet", UNet, _unet_inputs, "out_sample"),
    "vae_encoder": ComponentSpec("vae", VaeEncoder, _encoder_inputs, "latent_parameters"),
    "vae_decoder": ComponentSpec("vae", VaeDecoder, _decoder_inputs, "sample"),
}
