"""Which files a diffusers checkpoint is made of."""

from __future__ import annotations

from collections.abc import Iterator

WEIGHT_STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
PARTS = tuple(WEIGHT_STEMS)
CONFIG_FILES = {
    **{part: f"{part}/config.json" for part in PARTS},
    "scheduler": "scheduler/scheduler_config.json",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
VARIANTS = (None, "fp16")  # in the order they are taken


VAE_HALVES = {"vae_encoder": ("encoder.", "quant_conv."), "vae_decoder": ("decoder.", "post_quant_conv.")}


def is_of_component(name: str, component: str) -> bool:
    """Whether a weight of a component's part is the component's: the VAE's two halves share a part."""
    return name.startswith(VAE_HALVES.get(component, ""))


def weight_names(part: str) -> Iterator[tuple[str | None, str, str]]:
    """For each variant: its name, the file that holds the part's weights, the index when there are several."""
    stem = WEIGHT_STEMS[part]
    for variant in VARIANTS:
        dotted = f".{variant}" if variant else ""
        yield variant, f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"


def is_shard(name: str, part: str, variant: str | None) -> bool:
    """Whether a file of this name, in the part's folder, is one of several that hold the variant's weights."""
    numbered = name.startswith(WEIGHT_STEMS[part]) and "-of-" in name and name.endswith(".safetensors")
    return numbered and (f".{variant}" in name if variant else not any(f".{v}" in name for v in VARIANTS if v))
