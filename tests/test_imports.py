"""What the runtime loads: a device has neither torch nor onnx, and starts without what it does not use yet."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors", "huggingface_hub"}
LATER = {"PIL", "av", "openvino", "onnxruntime", "tokenizers", "scipy", "matplotlib"}
PRINT_LOADED = "import json, sys; print(json.dumps(list(sys.modules)))"


def loaded_by(script):
    """The packages, but those of the standard library, that `script` loads into a fresh interpreter."""
    before, after = packages_after(""), packages_after(script)
    return after - before - sys.stdlib_module_names


def packages_after(script):
    command = [sys.executable, "-c", f"{script}\n{PRINT_LOADED}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_the_runtime_loads_numpy_and_msgspec_and_nothing_else():
    loaded = loaded_by("import outzoom.runtime")
    assert loaded - {"typing_extensions"} == {"outzoom", "numpy", "msgspec"}  # msgspec takes it where it is installed


def test_importing_the_command_line_loads_no_engine_and_nothing_of_export():
    assert not loaded_by("import outzoom.cli") & (HEAVY | LATER)


@pytest.mark.parametrize(
    ("target", "engine", "other"),
    [("onnxruntime-fp32", "onnxruntime", "openvino"), ("openvino-cpu-fp32", "openvino", "onnxruntime")],
)
def test_a_whole_zoom_loads_its_engine_and_nothing_that_export_needs(tiny_bundles, tmp_path, target, engine, other):
    bundle, video, strip = (str(p) for p in (tiny_bundles[target], tmp_path / "zoom.mp4", tmp_path / "strip.png"))
    script = f"""
import numpy as np
from outzoom.runtime import Motion, Painting, VideoWriter, film_strip, open_bundle, save_png
with open_bundle({bundle!r}) as zoom, VideoWriter({video!r}, 64, 64, 10) as video:
    picture = np.zeros((64, 64, 3), np.uint8)
    frames = list(zoom.frames(picture, "a reef", Motion(0.3, 10, 1.5, 2), Painting(steps=1)))
    for frame in frames:
        video.write(frame)
save_png(film_strip(frames), {strip!r})
"""
    loaded = loaded_by(script)
    assert engine in loaded
    assert {"tokenizers", "PIL", "av"} <= loaded
    assert not loaded & (HEAVY | {other})
