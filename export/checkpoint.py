"""A Stable Diffusion inpainting checkpoint on disk: checked, and its weights found without being read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from ..runtime.files import sha256_of

MAX_HEADER_BYTES = 100 * 2**20
MAX_CONFIG_BYTES = 2**20
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}
PARTS = ("text_encoder", "unet", "vae")


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
        """The configuration of a part (`unet`, `vae`, `text_encoder`, `scheduler`)."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return _read_json(self.path / part / name)

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
        return int(self.config("unet")["sample_size"]) * self.vae_scale_factor

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
            raise UserError(f"the {part} of '{path}' is a {found}; a Stable Diffusion checkpoint has a {expected}")
    channels = checkpoint.config("unet").get("in_channels")
    if channels != 9:
        kind = "a text-to-image checkpoint" if channels == 4 else "not an inpainting checkpoint"
        raise UserError(
            f"'{path}' is {kind}: its UNet has {channels} input channels, an inpainting UNet has 9 "
            "(latents 4, mask 1, masked picture 4)",
            hint="use an inpainting checkpoint, such as sd2-community/stable-diffusion-2-inpainting",
        )
    for part in PARTS:
        checkpoint.weight_file(part)
    checkpoint.config("scheduler")
    return checkpoint


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a safetensors file, every offset and size checked against the file.

    Source: the safetensors format: 8 bytes little-endian header length, a JSON header, then the data.
    """
    total = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, total - 8):
            raise UserError(f"'{file}' is damaged: its header claims {length} bytes", hint="download it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {name: _stored_tensor(file, entry, 8 + length, total) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"'{file}' is damaged: {error}", hint="download it again") from error


def _stored_tensor(file: Path, entry: dict[str, Any], data_start: int, total: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    dtype = entry["dtype"]
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= total - data_start:
        raise ValueError(f"a tensor of shape {shape} at {begin}..{end} lies outside the file")
    if dtype in BYTES_PER_ELEMENT and end - begin != math.prod(shape) * BYTES_PER_ELEMENT[dtype]:
        raise ValueError(f"a {dtype} tensor of shape {shape} has {end - begin} bytes")
    return StoredTensor(file, dtype, shape, data_start + begin, end - begin)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"the checkpoint has no '{file}'", hint="is the download complete?")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"'{file}' is over {MAX_CONFIG_BYTES} bytes; that is no configuration")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"'{file}' is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"'{file}' holds no JSON object")
    return config
