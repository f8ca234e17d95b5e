"""Opened by others: the files that optimum's pipelines look for lie where they look, and diffusers can read them."""

import json
import shutil
from pathlib import Path

import diffusers
import msgspec
import pytest

from outzoom.export import open_checkpoint
from outzoom.export.interop import write_interop_files
from outzoom.runtime import UserError, open_manifest
from outzoom.runtime.bundle import describe_files, write_manifest

COMPONENTS = ["text_encoder", "unet", "vae_encoder", "vae_decoder"]


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def root(tmp_path):
    """A bundle's folders, as far as the files are written into them."""
    for name in (*COMPONENTS, "tokenizer"):
        (tmp_path / "bundle" / name).mkdir(parents=True)
    return tmp_path / "bundle"


def read(file):
    return json.loads(file.read_bytes())


def test_each_part_has_its_configuration_and_both_halves_of_the_vae_the_same(checkpoint, root):
    write_interop_files(open_checkpoint(checkpoint), root)
    for component, part in zip(COMPONENTS, ["text_encoder", "unet", "vae", "vae"], strict=True):
        assert read(root / component / "config.json").items() >= read(checkpoint / part / "config.json").items()


def test_diffusers_reads_the_index_and_the_scheduler(checkpoint, root):
    write_interop_files(open_checkpoint(checkpoint), root)
    index = diffusers.DiffusionPipeline.load_config(root)
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert hasattr(diffusers, index["_class_name"])
    assert [index[part] for part in ("feature_extractor", "image_encoder", "safety_checker")] == [[None, None]] * 3
    library, name = index["scheduler"]
    assert library == "diffusers"
    assert getattr(diffusers, name).from_pretrained(root / "scheduler").config.steps_offset == 1


def test_a_key_that_an_old_configuration_lacks_gets_the_value_it_stands_for(checkpoint, root):
    file = checkpoint / "unet/config.json"
    file.write_text(json.dumps({k: v for k, v in read(file).items() if k != "time_cond_proj_dim"}))
    write_interop_files(open_checkpoint(checkpoint), root)
    assert read(root / "unet/config.json")["time_cond_proj_dim"] is None


def test_the_bundle_lists_them_and_still_opens(checkpoint, tiny_bundles, tmp_path):
    bundle = Path(shutil.copytree(tiny_bundles["onnxruntime-fp32"], tmp_path / "copy"))
    manifest = open_manifest(bundle).manifest
    write_interop_files(open_checkpoint(checkpoint), bundle)
    write_manifest(bundle, msgspec.structs.replace(manifest, files=describe_files(bundle)))
    assert {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"} <= set(
        open_manifest(bundle).manifest.files
    )


def test_a_hoisted_unet_is_refused(checkpoint, root):
    (root / "unet_text").mkdir()
    with pytest.raises(UserError, match="not hoisted"):
        write_interop_files(open_checkpoint(checkpoint), root)


@pytest.mark.parametrize("name", [None, 3, "os.system", "__import__('os')", "UNet2DConditionModel"])
def test_a_scheduler_that_is_no_class_of_diffusers_is_refused(checkpoint, root, name):
    file = checkpoint / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**read(file), "_class_name": name}))
    with pytest.raises(UserError, match="needs a class of diffusers"):
        write_interop_files(open_checkpoint(checkpoint), root)
