"""A Stable Diffusion inpainting checkpoint on disk: checked, and its weights found without being read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from ..runtime.files import sha256_of
from .safetensors import StoredTensor, read_header

MAX_CONFIG_BYTES = 2**20
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
WEIGHT_STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
PARTS = tuple(WEIGHT_STEMS)
PART_OF = {"text_encoder": "text_encoder", "unet": "unet", "vae_encoder": "vae", "vae_decoder": "vae"}
VARIANTS = (None, "fp16")
MAX_LEVELS = 7
# The numbers that are read from a part's configuration: default, lowest, highest. The defaults are those of
# diffusers and transformers, whose older versions did not write every key.
NUMBERS: dict[str, dict[str, tuple[float, float, float]]] = {
    "text_encoder": {
        "max_position_embeddings": (77, 3, 4096),
        "vocab_size": (49408, 2, 10_000_000),
        "hidden_size": (512, 1, 65536),
    },
    "unet": {"cross_attention_dim": (1280, 1, 65536)},
    "vae": {"in_channels": (3, 3, 3), "latent_channels": (4, 4, 4), "scaling_factor": (0.18215, 1e-3, 1e3)},
}


@dataclass(frozen=True)
class Checkpoint:
    """A checked diffusers directory."""

    path: Path

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part (`unet`, `vae`, `text_encoder`, `scheduler`), with defaults filled in."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        defaults = {key: default for key, (default, _, _) in NUMBERS.get(part, {}).items()}
        return {**defaults, **_read_json(self.path / part / name)}

    def weights(self, part: str) -> dict[str, StoredTensor]:
        """The tensors of a part, by name, from all of its files."""
        tensors = {}
        for file in self.weight_files(part):
            tensors.update(read_header(file))
        return tensors

    def variant(self, part: str) -> str | None:
        """The variant that the part's weights are read from: None, or "fp16" where there is nothing else."""
        return self._found_weights(part)[0]

    def weight_files(self, part: str) -> tuple[Path, ...]:
        """The safetensors files of a part, one or many; raises UserError when there is none, and for pickles."""
        return self._found_weights(part)[1]

    def _found_weights(self, part: str) -> tuple[str | None, tuple[Path, ...]]:
        folder, stem = self.path / part, WEIGHT_STEMS[part]
        for variant in VARIANTS:
            dotted = f".{variant}" if variant else ""
            if (file := folder / f"{stem}{dotted}.safetensors").is_file():
                return variant, (file,)
            if (index := folder / f"{stem}.safetensors.index{dotted}.json").is_file():
                return variant, _shards(index)
        found = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
        if found:
            raise UserError(
                f"'{folder / found[0]}' is a pickle, which can run code when it is loaded; it is not read",
                hint="convert it once, where you trust it: diffusers' pipeline.save_pretrained(..., "
                "safe_serialization=True)",
            )
        raise UserError(f"'{folder}' has no {stem}.safetensors", hint="is the download complete?")

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.path / "tokenizer"

    @property
    def name(self) -> str:
        """What it is called in a bundle's manifest."""
        return self.path.resolve().name

    @cached_property
    def sha256(self) -> str:
        """One hash over the configurations and weights of all parts."""
        return self.digest(sha256_of)

    def digest(self, hash_of: Callable[[Path], str]) -> str:
        """`sha256`, from the hash that `hash_of` gives, or remembers, of each file."""
        files = [self.path / "scheduler" / "scheduler_config.json"]
        for part in PARTS:
            files += [self.path / part / "config.json", *self.weight_files(part)]
        return sha256("\n".join(hash_of(file) for file in files).encode()).hexdigest()

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along a side."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def size_multiple(self) -> int:
        """What width and height must be multiples of, so that the UNet halves its feature maps evenly."""
        return int(self.vae_scale_factor * 2 ** (len(self.config("unet")["block_out_channels"]) - 1))

    @property
    def native_side(self) -> int:
        """Width and height that the model was trained for."""
        cells = self.config("unet").get("sample_size")
        if type(cells) is not int or not 1 <= cells <= 4096:
            raise UserError(f"the UNet of '{self.path}' has the sample_size {cells!r}", hint="give --size WxH")
        return cells * self.vae_scale_factor

    def check_size(self, width: int, height: int) -> None:
        """Raises UserError for a size that the VAE or the UNet can't take."""
        unit = self.size_multiple
        if width % unit or height % unit or not unit <= min(width, height) <= max(width, height) <= 4096:
            near = [min(4096 // unit, max(1, round(side / unit))) * unit for side in (width, height)]
            raise UserError(
                f"this model takes widths and heights that are multiples of {unit}, up to 4096; got {width}x{height}",
                hint=f"try --size {near[0]}x{near[1]}",
            )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a diffusers directory; raises UserError that says why it is no SD inpainting checkpoint."""
    try:
        return _open(path)
    except OSError as error:
        message = f"the checkpoint '{path}' can't be read: {error.strerror or error}"
        raise UserError(message, hint="check the path and the rights of its files") from error


def _open(path: Path) -> Checkpoint:
    if not path.exists():
        raise UserError(f"there is no checkpoint '{path}'", hint="give a diffusers directory")
    if path.suffix in PICKLES:
        raise UserError(
            f"'{path}' is a pickle, which can run code when it is loaded; it is not read",
            hint="convert it once, where you trust it, to a diffusers directory with safetensors",
        )
    if not (path / "model_index.json").is_file():
        raise UserError(
            f"'{path}' is not a checkpoint: it has no model_index.json",
            hint="give the directory that a diffusers pipeline's save_pretrained wrote",
        )
    checkpoint = Checkpoint(path)
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    for part, expected in classes.items():
        if (found := checkpoint.config(part).get("_class_name")) != expected:
            raise _not_stable_diffusion(path, part, found, expected)
    found = checkpoint.config("text_encoder").get("architectures") or ["CLIPTextModel"]
    if found != ["CLIPTextModel"]:
        raise _not_stable_diffusion(path, "text_encoder", found, "CLIPTextModel")
    channels = checkpoint.config("unet").get("in_channels")
    if channels != 9:
        kind = "a text-to-image checkpoint" if channels == 4 else "not an inpainting checkpoint"
        raise UserError(
            f"'{path}' is {kind}: its UNet has {channels} input channels, an inpainting UNet has 9 "
            "(latents 4, mask 1, masked picture 4)",
            hint="use an inpainting checkpoint, such as sd2-community/stable-diffusion-2-inpainting, downloaded",
        )
    for part in PARTS:
        _check_numbers(checkpoint, part)
        checkpoint.weights(part)
    context, width = checkpoint.config("unet")["cross_attention_dim"], checkpoint.config("text_encoder")["hidden_size"]
    if context != width:
        raise UserError(
            f"the parts of '{path}' do not fit: its UNet takes text {context} wide, its text encoder gives {width}",
            hint="take both from one checkpoint",
        )
    checkpoint.config("scheduler")
    return checkpoint


def _not_stable_diffusion(path: Path, part: str, found: object, expected: str) -> UserError:
    return UserError(
        f"the {part} of '{path}' is a {found}; a Stable Diffusion checkpoint has a {expected}",
        hint="use a checkpoint of Stable Diffusion 1 or 2, made for inpainting",
    )


def _check_numbers(checkpoint: Checkpoint, part: str) -> None:
    config = checkpoint.config(part)
    for key, (default, low, high) in NUMBERS[part].items():
        value = config[key]
        numeric = type(value) is int or (type(value) is float and type(default) is float)
        if not (numeric and low <= value <= high):
            allowed = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise _bad_config(checkpoint.path / part, f"{key} must be {allowed}, got {value!r}")
    levels = config.get("block_out_channels")
    if part != "text_encoder" and not (isinstance(levels, list) and 1 <= len(levels) <= MAX_LEVELS):
        raise _bad_config(checkpoint.path / part, f"block_out_channels must be a list of 1 to {MAX_LEVELS} numbers")


def _bad_config(folder: Path, problem: str) -> UserError:
    return UserError(f"'{folder / 'config.json'}' is wrong: {problem}", hint="download the checkpoint again")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, each beside it."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"'{index}' has no weight_map of names", hint="download the checkpoint again")
    files = tuple(index.parent / name for name in sorted(set(names.values())))
    for file in files:
        if file.parent != index.parent or file.suffix != ".safetensors":
            message = f"'{index}' names a file that is no shard beside it: '{file}'"
            raise UserError(message, hint="do not use this checkpoint")
        if not file.is_file():
            raise UserError(f"the shard '{file}' is missing", hint="is the download complete?")
    return files


def _read_json(file: Path) -> dict[str, Any]:
    again = "download the checkpoint again"
    if not file.is_file():
        raise UserError(f"the checkpoint has no '{file}'", hint="is the download complete?")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"'{file}' is over {MAX_CONFIG_BYTES} bytes; that is no configuration", hint=again)
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is not JSON: {error}", hint=again) from error
    if not isinstance(config, dict):
        raise UserError(f"'{file}' holds no JSON object", hint=again)
    return config
