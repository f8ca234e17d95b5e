"""TensorRT: engines that the real builder makes without a GPU, and what can be tested where there is none.

The builder is tensorrt_rtx, in this environment or in that of the Python that OUTZOOM_TENSORRT_RTX_PYTHON names, which
has outzoom as well. Nothing here runs an engine of TensorRT: that takes a GPU. Where one is played, it is for the
bookkeeping of buffers alone.
"""

import gc
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from played_gpu import Doubling, HostRuntime
from short_recipes import write_recipes

from outzoom.export import read_recipe
from outzoom.export.targets import adapted
from outzoom.runtime import open_manifest
from outzoom.runtime.backends import Loading
from outzoom.runtime.backends.cuda import ALIGNMENT_BYTES, Cuda, DeviceMemory, Gpu, Residents
from outzoom.runtime.backends.tensorrt import TensorRt, _package, check_capability, is_origin, parse_device
from outzoom.runtime.backends.tensorrt_build import BuildOptions, options_of
from outzoom.runtime.backends.tensorrt_engine import TensorRtEngine
from outzoom.runtime.backends.tensorrt_origin import (
    ENGINE_NAME,
    ORIGIN_NAME,
    Origin,
    check_origin,
    read_origin,
    write_origin,
)
from outzoom.runtime.bundle import COMPONENTS
from outzoom.runtime.errors import BundleError, MissingPackageError, OutzoomError, UserError
from outzoom.runtime.inpainting import Inpainting

BUILDER = os.environ.get("OUTZOOM_TENSORRT_RTX_PYTHON") or (sys.executable if find_spec("tensorrt_rtx") else "")
needs_builder = pytest.mark.skipif(
    not BUILDER, reason="tensorrt_rtx is not installed, and OUTZOOM_TENSORRT_RTX_PYTHON names no Python that has it"
)
ORIN = Gpu(0, "Orin", (8, 7), 12060, 2**34)
HERE = Origin("tensorrt", "10.3.0", ("8.7",), "Orin", 12060, "fastest", {"sparse": "True"})


@pytest.fixture
def stored_engine(tmp_path):
    """Writes an engine's file, whatever is in it, with an origin beside it."""

    def stored_engine(origin=HERE):
        engine = tmp_path / ENGINE_NAME
        engine.write_bytes(b"not for any GPU")
        write_origin(engine, origin)
        return engine

    return stored_engine


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "10.7.0"}, r"built by tensorrt 10\.7\.0, and here is 10\.3\.0"),
        ({"capabilities": ("8.6", "8.9")}, r"compute capability 8\.6, 8\.9, and 'Orin' has 8\.7"),
        ({"gpu": "Orin NX"}, "built on 'Orin NX', and this is 'Orin'"),
        ({"driver": 13000}, "driver of CUDA 13000, and here is that of 12060"),
        ({"package": "tensorrt_rtx"}, "built by tensorrt_rtx, and this is tensorrt"),
    ],
)
def test_an_engine_of_another_device_driver_or_version_is_refused(stored_engine, change, says):
    engine = stored_engine(msgspec.structs.replace(HERE, **change))
    with pytest.raises(BundleError, match=says) as caught:
        check_origin(engine, "tensorrt", "10.3.0", ORIN)
    assert "outzoom compile" in caught.value.hint


def test_an_engine_of_this_device_is_accepted(stored_engine):
    assert check_origin(stored_engine(), "tensorrt", "10.3.0", ORIN) == HERE


def test_an_engine_that_was_built_ahead_runs_on_each_gpu_of_its_capabilities(stored_engine):
    ahead = msgspec.structs.replace(HERE, package="tensorrt_rtx", gpu=None, driver=None, capabilities=("8.6", "8.7"))
    assert check_origin(stored_engine(ahead), "tensorrt_rtx", "10.3.0", ORIN) == ahead


@pytest.mark.parametrize(
    "change",
    [
        {"version": "10.7.0"}, {"capabilities": ("8.6",)}, {"gpu": "Orin NX"}, {"driver": 13000},
        {"compute": "float32"}, {"settings": {"sparse": "False"}}, {"package": "tensorrt_rtx"},
    ],
)  # fmt: skip
def test_engines_of_different_origin_have_different_names_in_the_cache(stored_engine, change):
    other = msgspec.structs.replace(HERE, **change)
    assert other.key != HERE.key
    assert not is_origin(stored_engine(), other)  # not even one that lies under its name


def test_an_engine_that_was_cut_off_is_built_again(stored_engine):
    engine = stored_engine()
    assert is_origin(engine, HERE)
    engine.write_bytes(b"not for")
    assert not is_origin(engine, HERE)
    with pytest.raises(BundleError, match="has 7 bytes; 15 were written"):
        read_origin(engine)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"[" * 40_000, b" " * 70_000])
def test_a_damaged_origin_is_refused(stored_engine, damage):
    engine = stored_engine()
    engine.with_name(ORIGIN_NAME).write_bytes(damage)
    with pytest.raises(BundleError):
        read_origin(engine)
    assert not is_origin(engine, HERE)


def test_an_engine_without_an_origin_is_refused(stored_engine):
    engine = stored_engine()
    engine.with_name(ORIGIN_NAME).unlink()
    with pytest.raises(BundleError, match="nothing says what the engine"):
        read_origin(engine)


@pytest.mark.parametrize(
    ("text", "found"), [(None, (0, None)), ("GPU:1", (1, None)), ("DLA", (0, 0)), ("DLA:1", (0, 1))]
)
def test_a_device_names_a_gpu_or_an_accelerator(text, found):
    assert parse_device(text) == found


@pytest.mark.parametrize("text", ["", "CPU", "GPU:", "GPU:-1", "DLA:1:2", "gpu", "GPU:999"])
def test_another_device_is_refused(text):
    if not text:
        assert parse_device(text) == (0, None)
        return
    with pytest.raises(UserError, match="TensorRT runs on GPU and DLA"):
        parse_device(text)


def test_options_come_from_the_environment():
    assert options_of({}) == BuildOptions()
    asked = options_of({"OUTZOOM_TENSORRT_WORKSPACE_MIB": "512", "OUTZOOM_TENSORRT_SPARSE": "0"})
    assert asked == BuildOptions(workspace_mib=512, sparse=False)


@pytest.mark.parametrize(
    "environment",
    [{"OUTZOOM_TENSORRT_WORKSPACE_MIB": text} for text in ("0", "-1", "1e3", "lots", "9" * 30)]
    + [{"OUTZOOM_TENSORRT_SPARSE": "yes"}],
)
def test_options_that_are_none_are_refused(environment):
    with pytest.raises(UserError, match="OUTZOOM_TENSORRT"):
        options_of(environment)


@pytest.fixture
def memory():
    """Device memory played by numbers: `live` has the blocks that the driver would have."""
    live: dict[int, int] = {}

    def allocate(size_bytes):
        pointer = 0x1000 * (len(live) + 1) + sum(live.values())
        live[pointer] = size_bytes
        return pointer

    made = DeviceMemory(allocate, live.pop)
    made.live = live
    return made


def test_a_block_that_is_given_back_is_taken_again_for_its_size(memory):
    first = memory.take(1000)
    memory.give_back(first)
    assert memory.take(900) == first  # both are rounded up to 1024
    assert memory.take(900) != first
    assert memory.used_bytes == 8 * ALIGNMENT_BYTES


def test_trimming_frees_what_nobody_uses_and_nothing_else(memory):
    used, spare = memory.take(1), memory.take(5000)
    memory.give_back(spare)
    memory.trim()
    assert list(memory.live) == [used]
    assert memory.used_bytes == ALIGNMENT_BYTES


def test_an_array_stays_on_the_device_until_the_last_one_lets_it_go(memory):
    residents = Residents(memory)
    array, pointer = np.zeros(8, np.float32), memory.take(32)
    residents.keep(array, pointer)
    kept = {"text": array}
    del array
    assert residents.find(kept["text"]) == pointer
    assert memory.used_bytes == ALIGNMENT_BYTES
    kept.clear()
    gc.collect()
    assert memory.used_bytes == 0
    assert memory.take(32) == pointer


def test_an_equal_array_or_a_part_is_not_taken_for_the_one_on_the_device(memory):
    residents = Residents(memory)
    array = np.arange(8, dtype=np.float32)
    residents.keep(array, memory.take(32))
    assert residents.find(array.copy()) is None
    assert residents.find(array[:]) is None


def test_an_array_on_the_device_can_not_be_changed_unnoticed(memory):
    residents = Residents(memory)
    array = np.zeros(8, np.float32)
    residents.keep(array, memory.take(32))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    array.flags.writeable = True
    assert residents.find(array) is None


@pytest.fixture
def doubling(tmp_path):
    """Opens an engine of TensorRtEngine's own on the played device: the engine, the device and the package."""
    runtime, package = HostRuntime(), Doubling()
    device = Cuda(runtime, ORIN)
    (tmp_path / ENGINE_NAME).touch()

    def doubling(keep=True):
        return TensorRtEngine(package, tmp_path / ENGINE_NAME, device, {}, keep), runtime, package

    return doubling


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_one_engine_made_is_not_copied_to_the_device_for_the_next(doubling):
    first, runtime, _ = doubling()
    second = doubling()[0]
    made = first.run({"x": X})["y"]
    assert runtime.copied_in == 1
    np.testing.assert_array_equal(second.run({"x": made})["y"], 4 * X)
    assert runtime.copied_in == 1
    np.testing.assert_array_equal(second.run({"x": made.copy()})["y"], 4 * X)
    assert runtime.copied_in == 2


def test_outputs_of_a_frugal_engine_are_not_kept_on_the_device(doubling):
    engine, runtime, _ = doubling(keep=False)
    made = engine.run({"x": X})["y"]
    made += 1
    np.testing.assert_array_equal(engine.run({"x": made})["y"], 4 * X + 2)
    assert runtime.copied_in == 2
    engine.rest()
    assert not runtime.blocks


def test_a_thousand_runs_take_no_more_memory_than_two(doubling):
    engine, runtime, _ = doubling()
    made = X
    for _ in range(1000):
        made = engine.run({"x": np.zeros_like(X) + made / 2})["y"]
    np.testing.assert_array_equal(made, X)
    assert len(runtime.blocks) <= 3


def test_an_engine_rests_without_what_it_works_in_and_runs_again(doubling):
    engine, runtime, package = doubling()
    kept = engine.run({"x": X})["y"]
    engine.rest()
    assert len(runtime.blocks) == 1  # that of the array that we hold
    np.testing.assert_array_equal(engine.run({"x": kept})["y"], 4 * X)
    assert package.contexts == 2


def test_a_closed_engine_leaves_nothing_on_the_device_or_pinned(doubling):
    engine, runtime, _ = doubling()
    engine.run({"x": X})
    gc.collect()
    engine.close()
    assert not runtime.blocks
    assert not runtime.pinned


def test_an_input_of_another_shape_is_refused_before_it_is_copied(doubling):
    engine, runtime, _ = doubling()
    with pytest.raises(ValueError, match=r"'x' has the shape \(3, 2\); the engine was built for \(2, 3\)"):
        engine.run({"x": X.T})
    assert runtime.copied_in == 0


def test_a_run_that_fails_gives_its_memory_back(doubling):
    engine, runtime, package = doubling()
    package.works = False
    with pytest.raises(OutzoomError, match="TensorRT's engine failed"):
        engine.run({"x": X})
    engine.rest()
    assert not runtime.blocks


def test_a_device_without_memory_is_a_memory_error(doubling):
    engine, runtime, _ = doubling()
    runtime.cudaMalloc = lambda size: (2, None)
    with pytest.raises(MemoryError, match="cudaMalloc"):
        engine.run({"x": X})


# Packages, libraries and drivers that are missing


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """Puts a package called tensorrt in the way, with this text in it."""

    def fake_package(text):
        (tmp_path / "tensorrt").mkdir()
        (tmp_path / "tensorrt" / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    _package.cache_clear()
    yield fake_package
    sys.modules.pop("tensorrt", None)
    _package.cache_clear()


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_missing_package_is_named_with_where_it_comes_from(tmp_path):
    with pytest.raises(MissingPackageError, match="the target 'tensorrt' needs the package 'tensorrt'") as caught:
        TensorRt("tensorrt").load(tmp_path / "model.onnx", Loading())
    assert "JetPack" in caught.value.hint
    assert "JetPack" in (TensorRt("tensorrt").absent() or "")


def test_a_missing_library_of_an_installed_package_is_named(fake_package):
    fake_package("import ctypes\nctypes.CDLL('libnvinfer.so.1000')\n")  # what NVIDIA's package does
    with pytest.raises(UserError, match=r"installed, but a library that it needs is not: libnvinfer\.so\.1000"):
        TensorRt("tensorrt").version()


def test_a_package_that_is_too_old_is_refused(fake_package):
    fake_package("__version__ = '8.6.2'\n")
    with pytest.raises(UserError, match=r"of version 8\.6\.2; 10 or newer is needed"):
        TensorRt("tensorrt").version()


def test_a_missing_driver_is_said_before_anything_is_read(fake_package, tmp_path):
    pytest.importorskip("cuda.bindings.runtime")
    if TensorRt("tensorrt_rtx").absent() is None:
        pytest.skip("there is a GPU here")
    fake_package("__version__ = '10.3.0'\n")
    with pytest.raises(UserError, match=r"NVIDIA's driver .* is not there, or too old") as caught:
        TensorRt("tensorrt").load(tmp_path / "nowhere.onnx", Loading(cache=tmp_path / "cache"))
    assert "JetPack" in caught.value.hint
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("package", "capability", "is_taken"),
    [
        ("tensorrt_rtx", (8, 9), True), ("tensorrt_rtx", (9, 0), False), ("tensorrt_rtx", (8, 7), False),
        ("tensorrt_rtx", (13, 0), True), ("tensorrt", (9, 0), True),
    ],
)  # fmt: skip
def test_a_gpu_that_the_package_has_no_kernels_for_is_refused_before_an_engine_is_built(package, capability, is_taken):
    kinds = {"ComputeCapability": SimpleNamespace(__members__=["NONE", "SM86", "SM89", "SM120"])}
    fake = SimpleNamespace(__name__=package, __version__="1.7.1", **(kinds if package == "tensorrt_rtx" else {}))
    here = Gpu(0, "H200", capability, 13000, 2**37)
    with nullcontext() if is_taken else pytest.raises(UserError, match="does not run on 'H200'") as caught:
        check_capability(fake, here)
    assert is_taken or "8.6, 8.9, 12.0" in caught.value.hint


# Bundles, which need no TensorRT, and engines of them by the real builder


@pytest.fixture(scope="module")
def typed_bundles(tiny_checkpoint, tmp_path_factory, build_bundles):
    """Bundles of the tiny checkpoint in the form that TensorRT takes, whole and, in fp16, with a hoisted UNet."""
    folder = tmp_path_factory.mktemp("typed")
    whole = build_bundles(tiny_checkpoint, folder, ["tensorrt-rtx"], write_recipes(folder), shallow_skips=1)
    hoisted = build_bundles(tiny_checkpoint, folder / "hoisted", ["tensorrt-rtx"], ["fp16"], hoist=True)
    return {**whole, "hoisted-fp16": hoisted["tensorrt-rtx-fp16"]}


def rounding_parameters(bundle, component):
    """Scale and zero points of everything that is rounded."""
    with Inpainting(open_manifest(bundle)).engine_file(component) as engine:
        graph = ir.load(engine).graph
        assert not [node for node in graph if node.domain]
        rounded = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        return [[value.const_value.numpy().copy() for value in node.inputs[1:]] for node in rounded]


def test_a_bundle_is_built_without_the_package_and_checked_on_another_target(typed_bundles):
    for name, path in typed_bundles.items():
        manifest = open_manifest(path).manifest
        assert manifest.checked_on == "onnxruntime"
        assert manifest.tools["tensorrt-rtx"] == "made on the device"
        least = min(one.parity_psnr_db or np.inf for one in manifest.components.values())
        assert least > {"fp32": 100, "fp16": 50, "int8": 15, "int4": 10}[name.split("-")[-1]], name


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_codes_of_a_bundle_have_zero_for_zero_and_scales_above_it(typed_bundles, recipe):
    for component in ("text_encoder", "unet", "vae_encoder", "vae_decoder"):
        parameters = rounding_parameters(typed_bundles[f"tensorrt-rtx-{recipe}"], component)
        assert parameters
        for scales, *zero_points in parameters:
            assert (scales > 0).all()
            assert all(one.dtype == np.int8 and not one.any() for one in zero_points)


def test_a_recipe_for_a_target_with_types_has_positive_blocks_and_stays_itself_for_others():
    recipe = read_recipe("int4")
    assert {rule.store.positive for rule in adapted(recipe, "tensorrt").rules if rule.engine == "int4"} == {True}
    assert adapted(recipe, "onnxruntime") == recipe


def build_engine(bundle, component, capability, work):
    """What the builder, in an environment that has it, says of an engine: what benchmarks/tensorrt_engines.py tells."""
    command = [BUILDER, "-m", "outzoom.benchmarks.tensorrt_engines", str(bundle), "--work", str(work)]
    done = subprocess.run([*command, "--one", component, capability], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_builder
@pytest.mark.parametrize(
    ("name", "component"),
    [
        (name, component)
        for name in ("tensorrt-rtx-fp32", "tensorrt-rtx-fp16", "tensorrt-rtx-int8", "tensorrt-rtx-int4")
        for component in (*COMPONENTS, "unet_shallow")
    ]
    + [("hoisted-fp16", component) for component in ("unet", "unet_text", "unet_time")],
)
def test_the_real_builder_takes_every_graph(typed_bundles, tmp_path, name, component):
    built = build_engine(typed_bundles[name], component, "8.6", tmp_path)
    assert built["refused"] is None
    assert built["engine_bytes"] > 0


@needs_builder
@pytest.mark.parametrize("capability", ["8.9", "12.0"])
def test_the_real_builder_builds_for_gpus_that_are_not_here(typed_bundles, tmp_path, capability):
    assert build_engine(typed_bundles["tensorrt-rtx-int4"], "unet", capability, tmp_path)["engine_bytes"] > 0


@needs_builder
def test_a_capability_that_the_builder_lacks_is_refused_with_those_that_it_has(typed_bundles, tmp_path):
    built = build_engine(typed_bundles["tensorrt-rtx-fp16"], "vae_decoder", "8.7", tmp_path)
    assert "does not build for compute capability 8.7" in built["refused"]


@needs_builder
def test_a_graph_with_zero_points_is_refused_with_the_builders_own_reason(
    tiny_checkpoint, tmp_path, build_bundles, typed_bundles
):
    recipe = write_recipes(tmp_path)[2]
    other = build_bundles(tiny_checkpoint, tmp_path / "out", ["onnxruntime"], [recipe])["onnxruntime-int8"]
    assert "Non-zero zero point is not supported" in build_engine(other, "unet", "8.6", tmp_path)["refused"]
