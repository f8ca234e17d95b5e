"""A Stable Diffusion inpainting checkpoint: found, checked, and its weights located without being read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..runtime.errors import OutzoomError, UserError
from ..runtime.files import sha256_of
from ..runtime.safetensors import StoredTensor, read_header
from . import hub, pickles
from .layout import CONFIG_FILES, PARTS, weight_names
from .single_file import KnownModel, SingleFile, converted_weights, read_single_file

MAX_CONFIG_BYTES = 2**20
PART_OF = {"text_encoder": "text_encoder", "unet": "unet", "vae_encoder": "vae", "vae_decoder": "vae"}
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
    """A checked checkpoint: a diffusers directory, or a single file with configurations from elsewhere."""

    path: Path
    name: str  # for people: the directory's or the file's, or owner/name@commit
    config_folders: tuple[Path, ...]  # the first that has a part's configuration gives it
    tokenizer_folder: Path

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part (`unet`, `vae`, `text_encoder`, `scheduler`), with defaults filled in."""
        defaults = {key: default for key, (default, _, _) in NUMBERS.get(part, {}).items()}
        return {**defaults, **_read_json(self.config_file(part))}

    def config_file(self, part: str) -> Path:
        """Where the configuration of a part is, or should be."""
        files = [folder / CONFIG_FILES[part] for folder in self.config_folders]
        return next((file for file in files if file.is_file()), files[0])

    @property
    def is_single_file(self) -> bool:
        """Whether all weights are in one file, under their original names."""
        return self.path.is_file()

    def weights(self, part: str) -> dict[str, StoredTensor]:
        """The tensors of a part by the names that diffusers gives them, each where it lies in a file."""
        if self.is_single_file:
            return converted_weights(self.path, part, self.config(part))
        tensors = {}
        for file in self.weight_files(part):
            tensors.update(read_header(file))
        return tensors

    def weight_files(self, part: str) -> tuple[Path, ...]:
        """The safetensors files of a part, one or many; raises UserError when there is none, and for pickles."""
        return (self.path,) if self.is_single_file else self._found_weights(part)[1]

    def _found_weights(self, part: str) -> tuple[str | None, tuple[Path, ...]]:
        folder = self.path / part
        for variant, whole, index in weight_names(part):
            if (folder / whole).is_file():
                return variant, (folder / whole,)
            if (folder / index).is_file():
                return variant, _shards(folder / index)
        if found := sorted(p.name for p in folder.glob("*") if pickles.is_pickle(p.name)):
            raise pickles.refused_in(self.path, str(folder / found[0]))
        whole = next(weight_names(part))[1]
        raise UserError(f"'{folder}' has no {whole}", hint="is the download complete?")

    @cached_property
    def sha256(self) -> str:
        """One hash over the configurations and weights of all parts."""
        return self.digest(sha256_of)

    def digest(self, hash_of: Callable[[Path], str]) -> str:
        """`sha256`, from the hash that `hash_of` gives, or remembers, of each file."""
        files = [self.config_file("scheduler")]
        for part in PARTS:
            files += [self.config_file(part), *self.weight_files(part)]
        return sha256("\n".join(hash_of(file) for file in dict.fromkeys(files)).encode()).hexdigest()

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


def open_checkpoint(
    path_or_id: str | Path, config: str | Path | None = None, on_download: hub.OnDownload | None = None
) -> Checkpoint:
    """Open a diffusers directory, a single .safetensors file, or `owner/name[@revision]` on the hub.

    `config` is a diffusers directory or hub id that gives a single file its tokenizer and, where it has them, its
    configurations and scheduler. `on_download` is called with the bytes that have come and those that will. Raises
    UserError that says why it is no Stable Diffusion inpainting checkpoint, OutzoomError when a download fails.
    """
    try:
        checkpoint, layout = _find(str(path_or_id), config, on_download)
        _check(checkpoint, layout)
    except OutzoomError:
        raise
    except OSError as error:
        message = f"the checkpoint '{path_or_id}' can't be read: {error.strerror or error}"
        raise UserError(message, hint="check the path and the rights of its files") from error
    return checkpoint


def _find(
    given: str, config: str | Path | None, on_download: hub.OnDownload | None
) -> tuple[Checkpoint, SingleFile | None]:
    """The checkpoint that was named, unchecked, and what its header says where it is one file."""
    path = Path(given)
    if path.exists():
        name = path.resolve().name
    elif hub_id := hub.parse_hub_id(given):
        snapshot = hub.fetch_checkpoint(hub_id, on_download)
        path, name = snapshot.path, snapshot.name
    else:
        raise UserError(
            f"there is no checkpoint '{given}'",
            hint="give a diffusers directory, a .safetensors file, or a hub id: owner/name or owner/name@revision",
        )
    if path.is_file() and pickles.is_pickle(path.name):
        raise pickles.refused_file(path)
    if path.is_file() and path.suffix.lower() == ".safetensors":
        layout = read_single_file(path)
        _check_channels(given, layout.unet_channels)
        return Checkpoint(path, name, *_companions(path, layout, config)), layout
    if config is not None:
        raise UserError(f"--config is for a single file; '{given}' has its own configurations", hint="leave it out")
    if not (path / "model_index.json").is_file():
        alone = sorted(path.glob("*.safetensors"))
        raise UserError(
            f"'{given}' is not a checkpoint: it has no model_index.json",
            hint=f"give the file itself: '{alone[0]}'"
            if alone
            else "give the directory that a diffusers pipeline's save_pretrained wrote",
        )
    return Checkpoint(path, name, (path,), path / "tokenizer"), None


def _companions(file: Path, layout: SingleFile, config: str | Path | None) -> tuple[tuple[Path, ...], Path]:
    """Where a single file's configurations are, and its tokenizer."""
    known = layout.known
    if config is not None:
        folder = _config_folder(str(config))
        return (folder, *([known.folder] if known else [])), folder / "tokenizer"
    if known is None:
        raise UserError(
            f"the text encoder of '{file}' ({layout.text_encoder}) is {layout.text_width} wide; Stable Diffusion 1 "
            "has CLIP, 768 wide, and 2 has OpenCLIP, 1024 wide",
            hint="give --config a diffusers directory or hub id of the same model",
        )
    return (known.folder,), _default_tokenizer(file, known)


def _config_folder(config: str) -> Path:
    folder = Path(config)
    if not folder.exists():
        if (hub_id := hub.parse_hub_id(config)) is None:
            raise UserError(f"there is no --config '{config}'", hint="give a diffusers directory or a hub id")
        return hub.fetch_config(hub_id).path
    if not (folder / "tokenizer").is_dir():
        raise UserError(f"--config '{config}' has no tokenizer/", hint="give a diffusers directory or a hub id")
    return folder


def _default_tokenizer(file: Path, known: KnownModel) -> Path:
    try:
        return hub.fetch_tokenizer(hub.HubId(known.tokenizer_repo))
    except OutzoomError as error:
        raise type(error)(
            f"'{file}' holds no tokenizer, and that of {known.tokenizer_repo} can't be had: {error}",
            hint="give --config a diffusers directory that has the tokenizer",
        ) from error


def _check(checkpoint: Checkpoint, layout: SingleFile | None) -> None:
    path = checkpoint.path
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    for part, expected in classes.items():
        if (found := checkpoint.config(part).get("_class_name")) != expected:
            raise _not_stable_diffusion(path, part, found, expected)
    found = checkpoint.config("text_encoder").get("architectures") or ["CLIPTextModel"]
    if found != ["CLIPTextModel"]:
        raise _not_stable_diffusion(path, "text_encoder", found, "CLIPTextModel")
    if layout is None:
        _check_channels(str(path), checkpoint.config("unet").get("in_channels"))
    for part in PARTS:
        _check_numbers(checkpoint, part)
        if layout is None:
            checkpoint.weights(part)
    if layout is not None:
        _check_fit(checkpoint, layout)
    context, width = checkpoint.config("unet")["cross_attention_dim"], checkpoint.config("text_encoder")["hidden_size"]
    if context != width:
        raise UserError(
            f"the parts of '{path}' do not fit: its UNet takes text {context} wide, its text encoder gives {width}",
            hint="take both from one checkpoint",
        )
    checkpoint.config("scheduler")


def _check_channels(given: str, channels: object) -> None:
    if channels != 9:
        kind = "a text-to-image checkpoint" if channels == 4 else "not an inpainting checkpoint"
        raise UserError(
            f"'{given}' is {kind}: its UNet has {channels} input channels, an inpainting UNet has 9 "
            "(latents 4, mask 1, masked picture 4)",
            hint=f"use an inpainting checkpoint, such as {hub.SUGGESTION}",
        )


def _check_fit(checkpoint: Checkpoint, layout: SingleFile) -> None:
    """A single file's tensors against configurations that came from elsewhere."""
    text, unet = checkpoint.config("text_encoder"), checkpoint.config("unet")
    for part, key, expected, found in (
        ("text_encoder", "vocab_size", text["vocab_size"], layout.vocabulary),
        ("text_encoder", "hidden_size", text["hidden_size"], layout.text_width),
        ("unet", "in_channels", unet.get("in_channels"), layout.unet_channels),
        ("unet", "block_out_channels[0]", unet["block_out_channels"][0], layout.unet_width),
    ):
        if expected != found:
            raise UserError(
                f"'{checkpoint.config_file(part)}' does not fit '{checkpoint.path}': its {key} is {expected}, the "
                f"file's tensors say {found}",
                hint="give --config a diffusers directory or hub id of the same model",
            )


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
            raise _bad_config(checkpoint.config_file(part), f"{key} must be {allowed}, got {value!r}")
    levels = config.get("block_out_channels")
    if part != "text_encoder" and not (isinstance(levels, list) and 1 <= len(levels) <= MAX_LEVELS):
        raise _bad_config(
            checkpoint.config_file(part), f"block_out_channels must be a list of 1 to {MAX_LEVELS} numbers"
        )


def _bad_config(file: Path, problem: str) -> UserError:
    return UserError(f"'{file}' is wrong: {problem}", hint="download the checkpoint again")


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
