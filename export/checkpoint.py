"""A Stable Diffusion inpainting checkpoint on disk: checked, and its weights found without being read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.errors import UserError
from ..runtime.files import sha256_of

MAX_HEADER_BYTES = 100 * 2**20
MAX_CONFIG_BYTES = 2**20
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}
PARTS = ("text_encoder", "unet", "vae")
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


class HeaderEntry(msgspec.Struct):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie in a safetensors file."""

    file: Path
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


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
        """The tensors of a part, by name."""
        return read_safetensors_header(self.weight_file(part))

    def weight_file(self, part: str) -> Path:
        """The safetensors file of a part; raises UserError when there is none, and for pickles."""
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
            if (self.path / part / name).is_file():
                return self.path / part / name
        found = sorted(p.name for p in (self.path / part).glob("*") if p.suffix in PICKLES)
        if found:
            raise UserError(
                f"'{self.path / part / found[0]}' is a pickle, which can run code when it is loaded; it is not read",
                hint="convert it once, where you trust it: diffusers' pipeline.save_pretrained(..., "
                "safe_serialization=True)",
            )
        raise UserError(f"'{self.path / part}' has no {stem}.safetensors", hint="is the download complete?")

    @cached_property
    def sha256(self) -> str:
        """One hash over the configurations and weights of all parts."""
        files = [self.path / part / "config.json" for part in PARTS] + [self.weight_file(part) for part in PARTS]
        files.append(self.path / "scheduler" / "scheduler_config.json")
        return sha256("\n".join(sha256_of(file) for file in files).encode()).hexdigest()

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
            hint="use an inpainting checkpoint, such as sd2-community/stable-diffusion-2-inpainting",
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


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a safetensors file, every offset and size checked against the file.

    Source: the safetensors format: 8 bytes little-endian header length, a JSON header, then the data.
    """
    total = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, total - 8):
            raise UserError(
                f"'{file}' is damaged: its header claims {length} bytes, the file has {total}", hint="download it again"
            )
        try:
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            return {name: _stored_tensor(file, name, raw, 8 + length, total) for name, raw in header.items()}
        except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
            raise UserError(f"'{file}' is damaged: {error}", hint="download it again") from error


def _stored_tensor(file: Path, name: str, raw: msgspec.Raw, data_start: int, total: int) -> StoredTensor:
    try:
        entry = msgspec.json.decode(raw, type=HeaderEntry)
    except msgspec.ValidationError as error:
        raise ValueError(f"tensor '{name}': {error}") from error
    dtype, shape, (begin, end) = entry.dtype, entry.shape, entry.data_offsets
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= total - data_start:
        raise ValueError(f"tensor '{name}' of shape {shape} at {begin}..{end} lies outside the file")
    if dtype in BYTES_PER_ELEMENT and end - begin != math.prod(shape) * BYTES_PER_ELEMENT[dtype]:
        raise ValueError(f"the {dtype} tensor '{name}' of shape {shape} has {end - begin} bytes")
    return StoredTensor(file, dtype, shape, data_start + begin, end - begin)


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
