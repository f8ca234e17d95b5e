"""How well a picture agrees with a prompt, by a CLIP that the user has in a folder; nothing is downloaded.

The score means something beside another's of the same CLIP, prompt and size, and nothing by itself.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec

from ..runtime.errors import MissingPackageError, UserError
from .quality import Picture

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
HINT = "give a folder that save_pretrained of transformers' CLIPModel and CLIPProcessor wrote"


def check_clip(folder: Path) -> None:
    """Raise UserError for a folder that holds no CLIP, or its weights as a pickle; nothing is loaded."""
    for package in ("torch", "transformers"):
        if not _is_installed(package):
            raise MissingPackageError(package, "quality", "--clip")
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}' with a CLIP", hint=HINT)
    _check_config(folder / "config.json")
    if not any((folder / name).is_file() for name in WEIGHTS):
        others = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES]
        if others:
            raise UserError(
                f"'{others[0]}' is no safetensors file; what it is can run code when it is loaded: it is not read",
                hint="if you trust it, load it once with CLIPModel.from_pretrained, and save_pretrained it",
            )
        raise UserError(f"'{folder}' has no {WEIGHTS[0]}", hint=HINT)
    for names in (PROCESSORS, TOKENIZERS):
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"'{folder}' has no {' or '.join(names)}", hint=HINT)


def _is_installed(package: str) -> bool:
    """Whether it is there, without its import, which would take memory from what is measured."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is blocked
        return False


def _check_config(file: Path) -> None:
    class Config(msgspec.Struct):
        model_type: str

    try:
        kind = msgspec.json.decode(file.read_bytes(), type=Config).model_type
    except OSError as error:
        raise UserError(f"'{file}' can't be read: {error.strerror or error}", hint=HINT) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' is no configuration of a model: {error}", hint=HINT) from error
    if kind != "clip":
        raise UserError(f"'{file}' is of a '{kind}', not of a CLIP", hint=HINT)


class PromptAgreement:
    """A CLIP, loaded; raises UserError where it can't be."""

    def __init__(self, folder: Path) -> None:
        check_clip(folder)
        from transformers import CLIPModel, CLIPTokenizer

        try:
            self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self._images = _image_processor().from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever is wrong with the files
            raise UserError(f"the CLIP in '{folder}' can't be loaded: {error}", hint=HINT) from error

    def of(self, picture: Picture, prompt: str) -> float:
        """The cosine of the angle between a picture, uint8 RGB (height, width, 3), and a prompt, -1 to 1.

        Higher is better. Of a long prompt what CLIP's text encoder has room for counts, of a wide picture the centre
        that its processor cuts out. Source: Radford et al. 2021; Hessel et al. 2021 (CLIPScore) without its factor.
        """
        import torch

        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt")
        pixels = self._images(images=[picture], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            found = self._model(**tokens, pixel_values=pixels)
            cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        return float(cosine[0])


def _image_processor() -> Any:
    """The one that works on numpy arrays and Pillow; since transformers 5 the other, with torchvision, has its name."""
    import transformers

    if hasattr(transformers, "CLIPImageProcessorPil"):
        return transformers.CLIPImageProcessorPil
    return transformers.CLIPImageProcessor
