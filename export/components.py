"""The four models as the runtime calls them: which tensors go in, which come out, under which names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..runtime.errors import UserError
from ..runtime.safetensors import BYTES_PER_ELEMENT, StoredTensor
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
    """sample (n, 9, h, w), timestep (1,), encoder_hidden_states (n, tokens, width) -> out_sample (n, 4, h, w).

    One that was distilled with its guidance, as consistency models are, takes the strength of that, (1,), as well.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """One denoising prediction."""
        embedded = None if guidance is None else self._embedded(guidance)
        inputs = (sample, timestep, encoder_hidden_states)
        out: Tensor = self.unet(*inputs, timestep_cond=embedded, return_dict=False)[0]
        return out

    def _embedded(self, guidance: Tensor) -> Tensor:
        """The features (1, n) of a strength of guidance. Source: Luo et al. 2023, latent consistency models."""
        half = self.unet.config.time_cond_proj_dim // 2
        frequencies = torch.exp(torch.arange(half, device=guidance.device) * -(math.log(1e4) / (half - 1)))
        angles = (guidance - 1)[:, None] * 1000 * frequencies[None]
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


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


def streamed_part(checkpoint: Checkpoint, part: str) -> nn.Module:
    """A part of the checkpoint whose layers hold their weights, in float32, only while they run.

    Its memory is that of its largest layer and its activations. Raises UserError, when it runs, for a weight that
    is missing or has another shape than the configuration says.
    """
    stored = checkpoint.weights(part)
    with torch.device("meta"):
        model = empty_part(checkpoint, part)
    for path, layer in model.named_modules():
        parameters = {f"{path}.{name}": name for name, _ in layer.named_parameters(recurse=False)}
        if parameters:
            layer.register_forward_pre_hook(partial(_fill, parameters, stored))
            layer.register_forward_hook(_empty)
    return model.eval()


def _fill(parameters: dict[str, str], stored: dict[str, StoredTensor], layer: nn.Module, _: object) -> None:
    for path, name in parameters.items():
        found = find_weight(stored, path, tuple(layer.get_parameter(name).shape))
        weight = torch.from_numpy(found.float32()).reshape(layer.get_parameter(name).shape)
        setattr(layer, name, nn.Parameter(weight, requires_grad=False))


def _empty(layer: nn.Module, *_: object) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def find_weight(stored: dict[str, StoredTensor], name: str, shape: tuple[int, ...]) -> StoredTensor:
    """The stored tensor of a parameter, under whatever name the version that saved it gave it.

    Raises UserError when there is none, or when it is not a tensor of `shape` of floating-point numbers.
    """
    names = [name, f"text_model.{name}"]
    for new, old in OLD_ATTENTION_NAMES.items():
        if f".attentions.0.{new}." in name:
            names.append(name.replace(f".{new}.", f".{old}."))
    found = next((stored[key] for key in names if key in stored), None)
    if found is None:
        raise UserError(f"the checkpoint has no weight '{name}'", hint="is it complete?")
    # old VAEs hold linear layers as convolutions of one pixel
    same_shape = [side for side in shape if side != 1] == [side for side in found.shape if side != 1]
    if found.dtype not in BYTES_PER_ELEMENT or not same_shape:
        raise UserError(
            f"weight '{name}' is {found.dtype} {found.shape}; expected F32, F16 or BF16 of shape {shape}",
            hint="do the checkpoint's configuration and its weights belong together?",
        )
    return found


@dataclass(frozen=True)
class ComponentSpec:
    """A component: its module around the checkpoint's part, its output, and what the output's open sides are called."""

    module: Callable[[Any], nn.Module]
    output: str
    output_sides: tuple[str, ...] = ()


COMPONENT_SPECS: dict[str, ComponentSpec] = {
    "text_encoder": ComponentSpec(TextEncoder, "last_hidden_state"),
    "unet": ComponentSpec(UNet, "out_sample", ("batch", "channels", "latent_height", "latent_width")),
    "vae_encoder": ComponentSpec(
        VaeEncoder, "latent_parameters", ("batch", "channels", "latent_height", "latent_width")
    ),
    "vae_decoder": ComponentSpec(VaeDecoder, "sample", ("batch", "channels", "height", "width")),
}
