"""Pickles run code when they are loaded: they are refused, with the command that converts them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ..runtime.errors import UserError

PICKLES = (".ckpt", ".bin", ".pt", ".pth")


def is_pickle(name: str) -> bool:
    """Whether a file of this name is one."""
    return Path(name).suffix.lower() in PICKLES


def refused_file(file: Path) -> UserError:
    """The error for a pickle that was given as the checkpoint."""
    if (file.parent.parent / "model_index.json").is_file():
        return refused_in(file.parent.parent, str(file))
    load = f"StableDiffusionInpaintPipeline.from_single_file({_quoted(file)})"
    return _refused(str(file), load, file.parent / f"{file.stem}-diffusers")


def refused_in(folder: Path, found: str) -> UserError:
    """The error for a diffusers directory whose weights are pickles, such as `found`."""
    folder = folder.absolute()
    load = f"DiffusionPipeline.from_pretrained({_quoted(folder)})"
    return _refused(found, load, folder.parent / f"{folder.name}-safetensors")


def refused_on_hub(repo: str, revision: str | None, found: str) -> UserError:
    """The error for a model on the hub whose weights are pickles, such as `found`."""
    of = f", revision={_quoted(revision)}" if revision else ""
    load = f"DiffusionPipeline.from_pretrained({_quoted(repo)}{of})"
    return _refused(f"{repo}/{found}", load, Path(f"{repo.rpartition('/')[2]}-safetensors"))


def _refused(found: str, load: str, out: Path) -> UserError:
    pipeline = load.partition(".")[0]
    script = f"from diffusers import {pipeline}; {load}.save_pretrained({_quoted(out)}, safe_serialization=True)"
    return UserError(
        f"'{found}' is a pickle, which can run code when it is loaded; it is not read",
        hint=f"if you trust it, convert it once and give the result: python -c {shlex.quote(script)}",
    )


def _quoted(text: object) -> str:
    """As a Python string in double quotes, so that the shell's single quotes go around it."""
    return json.dumps(str(text))
