"""The package as it is installed: every folder of code is in it, with its data, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import outzoom

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(outzoom.__file__).parent
NOT_PACKAGES = {"tests", "build", "dist", "shared"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def folders_of_code():
    found = [path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")]
    kept = [f for f in found if not any(part in NOT_PACKAGES or part.startswith(".") for part in f.parts)]
    return {".".join(["outzoom", *folder.parts]) for folder in kept}


def test_every_folder_of_code_is_in_the_package_list_and_the_other_way_round(project):
    listed = project["tool"]["setuptools"]["packages"]
    assert set(listed) == folders_of_code()
    assert len(listed) == len(set(listed))


def test_the_extra_all_is_all_of_them_but_for_the_packages_of_one_makers_devices(project):
    extras = project["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.removeprefix("outzoom[").rstrip("]").split(",")) == extras.keys() - {
        "all",
        "dev",
        "energy",
        "qnn",
        "tensorrt",
        "tensorrt-rtx",
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from a copy of the tree, without the network."""
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs it, and the network is not used")
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(
        ".*", "training", "build", "dist", "*.egg-info", "__pycache__", "demo-output", "out"
    )
    source = shutil.copytree(ROOT, folder / "source", ignore=left_out)
    (source / ".venv" / "lib").mkdir(parents=True)
    (source / ".venv" / "lib" / "__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "cli.py",
        "runtime/schedulers/ddim.py",
        "models/recipes/fp32.toml",
        "models/configs/sd2-inpainting/unet/config.json",
        "models/demo/model_index.json",
        "models/demo/tokenizer/tokenizer.json",
        "models/demo/scheduler/scheduler_config.json",
        "models/demo/unet/diffusion_pytorch_model.safetensors",
    ],
)
def test_the_wheel_holds_what_is_needed(wheel, name):
    assert f"outzoom/{name}" in wheel


def test_the_wheel_holds_every_recipe_template_and_demo_file(wheel):
    data = {"models/recipes": "*.toml", "models/configs": "**/*", "benchmarks": "*.html", "models/demo": "**/*"}
    data |= {"hardware/devices": "*.toml", "hardware/drams": "*.toml", "hardware/workloads": "*.json"}
    data["runtime"] = "*.html"
    for folder, pattern in data.items():
        files = [path for path in (ROOT / folder).glob(pattern) if path.is_file()]
        assert files
        assert {f"outzoom/{path.relative_to(ROOT).as_posix()}" for path in files} <= set(wheel)


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[1] for name in wheel if name.startswith("outzoom/")}
    assert not tops & {".venv", "tests", "docs", "build", "shared", "Makefile"}
    assert {name.split("/")[0] for name in wheel} == {"outzoom", f"outzoom-{outzoom.__version__}.dist-info"}
    assert not [name for name in wheel if "models/training/" in name or name.endswith((".pt", ".pyc"))]
