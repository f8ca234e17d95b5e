"""Bundles made with --interop, opened by optimum's pipelines, which live in an environment of their own.

python -m venv rivals/optimum && rivals/optimum/bin/pip install -r benchmarks/rivals/optimum.txt
OUTZOOM_OPTIMUM_PYTHON=rivals/optimum/bin/python python -m pytest -m rivals
"""

import os
import subprocess

import numpy as np
import pytest

from outzoom.export.parity import tensor_psnr_db
from outzoom.runtime import Painting, open_bundle

PYTHON = os.environ.get("OUTZOOM_OPTIMUM_PYTHON", "")
pytestmark = [
    pytest.mark.rivals,
    pytest.mark.skipif(not PYTHON, reason="OUTZOOM_OPTIMUM_PYTHON names no Python that has optimum"),
]
PROMPT, STEPS, GUIDANCE, SEED = "a green meadow with red flowers", 5, 6.0, 8
SCRIPT = """
import sys
import numpy as np, torch
from PIL import Image
library, cls, bundle, given, made = sys.argv[1:]
pipe = getattr(__import__(library, fromlist=[cls]), cls).from_pretrained(bundle)
data = np.load(given)
images = pipe(
    prompt=str(data["prompt"]), image=Image.fromarray(data["picture"]), width=64, height=64,
    mask_image=Image.fromarray(data["mask"].astype(np.uint8) * 255),
    num_inference_steps=int(data["steps"]), guidance_scale=float(data["guidance"]),
    latents=torch.from_numpy(data["noise"]), generator=torch.Generator().manual_seed(int(data["seed"])),
    output_type="np",
).images
np.save(made, images[0])
"""


@pytest.fixture(scope="module")
def interop_bundles(tiny_checkpoint, tmp_path_factory, build_bundles):
    out = tmp_path_factory.mktemp("interop")
    return build_bundles(tiny_checkpoint, out, ["onnxruntime", "openvino-cpu"], ["fp32"], batch=2, interop=True)


@pytest.mark.parametrize(
    ("bundle", "library", "pipeline"),
    [
        ("onnxruntime-fp32", "optimum.onnxruntime", "ORTStableDiffusionInpaintPipeline"),
        ("openvino-cpu-fp32", "optimum.intel", "OVStableDiffusionInpaintPipeline"),
    ],
)
def test_optimum_paints_what_we_paint(interop_bundles, tmp_path, bundle, library, pipeline):
    import torch

    rng = np.random.default_rng(5)
    picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.ones((64, 64), bool)
    mask[16:-16, 16:-16] = False
    with open_bundle(interop_bundles[bundle]) as zoom:
        noise = zoom.inpainting.noise(3)
        drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(SEED)).numpy()
        painting = Painting(steps=STEPS, guidance=GUIDANCE)
        ours = zoom.inpainting.paint(picture, mask, PROMPT, painting, noise=noise, image_noise=drawn)
    given, made = tmp_path / "given.npz", tmp_path / "made.npy"
    np.savez(given, picture=picture, mask=mask, noise=noise, prompt=PROMPT, steps=STEPS, guidance=GUIDANCE, seed=SEED)
    command = [PYTHON, "-c", SCRIPT, library, pipeline, str(interop_bundles[bundle]), str(given), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = np.rint(np.load(made) * 255).astype(np.uint8)
    assert tensor_psnr_db(theirs, ours) > 40  # the same arithmetic in another order; OpenVINO there may round to bf16
