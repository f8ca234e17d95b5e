"""What the tests share: a tiny checkpoint of the real classes, the demo checkpoint, and bundles of both."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import outzoom.runtime as runtime

ROOT = Path(runtime.__file__).parent.parent
DEMO = ROOT / "models" / "demo"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
sys.path.insert(0, str(ROOT / "models"))  # scenes.py is a script's module, not the package's
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would hand down that it is ignored


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory):
    """Nothing that a test opens is kept in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTZOOM_CACHE", str(tmp_path_factory.mktemp("engines")))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of SD2 inpainting's classes at a tiny configuration: 64x64 pixels, random weights, fp32."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(4)
    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=77, hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4), cross_attention_dim=32, use_linear_projection=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=8, sample_size=64,
    )  # fmt: skip
    vae.register_to_config(scaling_factor=0.9)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(path, safe_serialization=True)  # fmt: skip
    return path


@pytest.fixture(scope="session")
def tiny_skeleton(tiny_checkpoint, tmp_path_factory):
    """Traces a component of the tiny checkpoint, once, at its own size unless told others: a file without weights."""
    from outzoom.export import Shapes, open_checkpoint
    from outzoom.export.trace import save_skeleton, trace

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "skeletons"  # all workers share it
    folder.mkdir(exist_ok=True)

    def tiny_skeleton(component, sizes=((64, 64),), batch=1):
        file = folder / f"{component}-{len(sizes)}-{batch}.onnx"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                save_skeleton(trace(open_checkpoint(tiny_checkpoint), component, Shapes(sizes, batch)), file)
        return file

    return tiny_skeleton


@pytest.fixture(scope="session")
def read_weights(tiny_skeleton):
    """Reads an opened checkpoint's weights into the graph of a component of the tiny one: arrays by name."""
    from outzoom.export.checkpoint import PART_OF
    from outzoom.export.trace import load_skeleton

    def read_weights(opened, component):
        model = load_skeleton(tiny_skeleton(component), opened.weights(PART_OF[component]))
        return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}

    return read_weights


@pytest.fixture(scope="session")
def stage_cache(tmp_path_factory) -> Path:
    """Where all builds of the session keep the results of their stages: a graph is traced once."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def build_bundles(stage_cache):
    """Builds bundles of a checkpoint, at its own size unless told others: a function that gives them by name."""
    from outzoom.export import Plan, Shapes, build, open_checkpoint, read_recipe

    def build_bundles(checkpoint, out, targets, recipes, sizes=(), batch=1, **options):
        opened = open_checkpoint(checkpoint)
        shapes = Shapes(tuple(sizes) or ((opened.native_side, opened.native_side),), batch)
        recipes = tuple(read_recipe(name) for name in recipes)
        plan = Plan(opened, tuple(targets), recipes, shapes, out, jobs=2, cache=stage_cache, **options)
        return {bundle.path.name: bundle.path for bundle in build(plan)}

    return build_bundles


@pytest.fixture(scope="session")
def tiny_bundles(tiny_checkpoint, tmp_path_factory, build_bundles) -> dict[str, Path]:
    """Bundles of the tiny checkpoint: both targets in fp32."""
    out = tmp_path_factory.mktemp("tiny-bundles")
    return build_bundles(tiny_checkpoint, out, ["onnxruntime", "openvino-cpu"], ["fp32"])


@pytest.fixture(scope="session")
def hoisted_bundles(tiny_checkpoint, tmp_path_factory, build_bundles) -> dict[str, Path]:
    """The same, but with the UNet in three parts."""
    out = tmp_path_factory.mktemp("hoisted-bundles")
    return build_bundles(tiny_checkpoint, out, ["onnxruntime", "openvino-cpu"], ["fp32"], hoist=True)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, build_bundles) -> dict[str, Path]:
    """Bundles of the demo checkpoint: both targets, both recipes."""
    out = tmp_path_factory.mktemp("bundles")
    return build_bundles(DEMO, out, ["onnxruntime", "openvino-cpu"], ["fp32", "fp16"])


@pytest.fixture
def picture() -> np.ndarray:
    """A scene that training never saw, 128x128."""
    import scenes

    return scenes.render("meadow", 900_001, scenes.Window(), 128)[0]


@pytest.fixture(scope="module")
def browser():
    """A real browser, without a window, if this machine has one."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def committed() -> Path:
    """The folder of the results that are committed."""
    return ROOT / "benchmarks" / "results"
