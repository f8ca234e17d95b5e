"""The files by which optimum's inpainting pipelines open a bundle: diffusers' layout around its engines.

optimum-onnx (ORTStableDiffusionInpaintPipeline) and optimum-intel (OVStableDiffusionInpaintPipeline) look for
model_index.json, for scheduler/ and tokenizer/, and for text_encoder/, unet/, vae_encoder/ and vae_decoder/, each
with model.onnx or openvino_model.xml, as a bundle has them, and with a config.json. They call the UNet once for
both halves of the guidance, so its batch must be free.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..runtime.bundle import COMPONENTS, HOISTED_INPUTS, TOKENIZER_FOLDER
from ..runtime.errors import UserError
from .checkpoint import PART_OF, Checkpoint

NOTHING = [None, None]  # a part of the pipeline that there is not
# What the pipelines read of a configuration, with the values that stand for a missing key.
NEEDED: dict[str, dict[str, Any]] = {
    "text_encoder": {"num_hidden_layers": 12},
    "unet": {"time_cond_proj_dim": None},
}


def write_interop_files(checkpoint: Checkpoint, root: Path) -> None:
    """Add to a bundle that is being written, its manifest not yet, what optimum opens it by; no engine is touched.

    `root` has the four components' folders and tokenizer/. Raises UserError for a hoisted UNet, which only
    outzoom can run, and for a scheduler that diffusers can't have.
    """
    if any((root / name).exists() for name in HOISTED_INPUTS):
        raise UserError("optimum takes the UNet whole, not hoisted", hint="leave out --hoist or --interop")
    _write_json(root / "model_index.json", _model_index(checkpoint))
    (root / "scheduler").mkdir()
    shutil.copyfile(checkpoint.config_file("scheduler"), root / "scheduler/scheduler_config.json")
    _write_tokenizer_of_transformers_4(root / TOKENIZER_FOLDER)
    for component in COMPONENTS:
        part = PART_OF[component]
        _write_json(root / component / "config.json", {**NEEDED.get(part, {}), **checkpoint.config(part)})


def _write_tokenizer_of_transformers_4(folder: Path) -> None:
    """The vocabulary and the merges in files of their own, which optimum's transformers reads in place of one file."""
    file = folder / "tokenizer.json"
    if not file.is_file() or (folder / "vocab.json").is_file():
        return
    model = json.loads(file.read_bytes())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def _model_index(checkpoint: Checkpoint) -> dict[str, Any]:
    scheduler = checkpoint.config("scheduler").get("_class_name")
    if not isinstance(scheduler, str) or not scheduler.isidentifier() or not scheduler.endswith("Scheduler"):
        raise UserError(
            f"the scheduler of '{checkpoint.path}' is {scheduler!r}; optimum needs a class of diffusers",
            hint="name one as _class_name in its scheduler_config.json, such as DDIMScheduler",
        )
    return {
        "_class_name": "StableDiffusionInpaintPipeline",
        "feature_extractor": NOTHING,
        "image_encoder": NOTHING,
        "requires_safety_checker": False,
        "safety_checker": NOTHING,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
