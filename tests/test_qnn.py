"""Contexts for Snapdragon's HTP: which are refused, and, with the package, that they are made and compute the same.

pip install 'outzoom[qnn]' brings the package, which emulates the HTP on x86-64.
"""

import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import onnx_ir as ir
import pytest
from graphs import CHANNELS, SIDE, inputs, named, run, small_model, snr_db
from short_recipes import CALIBRATION
from test_fixed_point import angles_model, in_int8, rounded

from outzoom.benchmarks.qnn_emulation import emulate, read_output
from outzoom.compress.angles import angles_apart
from outzoom.compress.fixed_point import integer_biases
from outzoom.export import Plan, Shapes, open_checkpoint, read_recipe
from outzoom.export.recipes import RECIPES_FOLDER
from outzoom.export.targets import adapted
from outzoom.runtime import Painting, open_bundle, open_manifest
from outzoom.runtime.backends import BACKENDS, Loading, backend_for, qnn_origin
from outzoom.runtime.backends.qnn_origin import (
    ORIGIN_NAME,
    SOCS,
    Origin,
    check_origin,
    device_soc,
    read_origin,
    write_origin,
)
from outzoom.runtime.bundle import TensorSpec
from outzoom.runtime.errors import BundleError, MissingPackageError, OutzoomError, UserError
from outzoom.runtime.inpainting import Inpainting

INSTALLED = find_spec("onnxruntime_qnn") is not None
needs_package = pytest.mark.skipif(
    not INSTALLED, reason="onnxruntime-qnn is not installed: pip install 'outzoom[qnn]' brings it"
)


def test_there_is_a_target_for_every_soc_and_one_for_the_device():
    assert {f"onnxruntime-qnn-{name.lower()}" for name in SOCS} | {"onnxruntime-qnn"} <= set(BACKENDS)
    assert BACKENDS["onnxruntime-qnn-sm8550"].soc.sold_as == "Snapdragon 8 Gen 2"
    with pytest.raises(UserError, match="no target 'onnxruntime-qnn-sm8450'") as error:
        backend_for("onnxruntime-qnn-sm8450")
    assert "did you mean 'onnxruntime-qnn-sm8" in error.value.hint


def engine_of(folder, soc, version="2.7.0"):
    engine = folder / "model.onnx"
    write_origin(engine, Origin(soc, version))
    return engine


def test_a_context_for_this_soc_by_this_version_is_taken(tmp_path):
    check_origin(engine_of(tmp_path, "SM8650"), "SM8650", "2.7.0")
    check_origin(engine_of(tmp_path, "SM8650"), None, "2.7.0")  # emulated


def test_a_context_for_another_soc_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"made for SM8550 \(Snapdragon 8 Gen 2\); this is SM8650") as error:
        check_origin(engine_of(tmp_path, "SM8550"), "SM8650", "2.7.0")
    assert "onnxruntime-qnn-sm8650" in error.value.hint


def test_a_soc_that_nothing_is_made_for_is_told_how_to_go_on(tmp_path):
    with pytest.raises(BundleError, match="this is 'SM7325'") as error:
        check_origin(engine_of(tmp_path, "SM8550"), "SM7325", "2.7.0")
    assert "onnxruntime-qnn" in error.value.hint
    assert "OUTZOOM_SOC" in error.value.hint


@pytest.mark.parametrize("soc", ["SM8550", None])
def test_a_context_by_another_version_is_refused(tmp_path, soc):
    with pytest.raises(BundleError, match=r"onnxruntime-qnn 2\.6\.0; here is 2\.7\.0") as error:
        check_origin(engine_of(tmp_path, "SM8550", "2.6.0"), soc, "2.7.0")
    assert "pip install onnxruntime-qnn==2.6.0" in error.value.hint


@pytest.mark.parametrize(
    "data",
    [
        None, b"", b"{}", b"[1]", b'{"soc": 3, "version": "2.7.0"}', b'{"soc": "SM8550"}', b"\xff",
        b'{"soc": "SM8550", "version": "2.7.0"}' + b" " * 5000, b'{"soc": "SM\\u001b[31m", "version": "2.7.0"}',
    ],
)  # fmt: skip
def test_a_missing_or_damaged_description_is_refused(tmp_path, data):
    if data is not None:
        (tmp_path / ORIGIN_NAME).write_bytes(data)
    with pytest.raises(BundleError, match=r"does not say what 'model\.onnx' was made for") as error:
        read_origin(tmp_path / "model.onnx")
    assert "\x1b" not in str(error.value)


def test_the_soc_can_be_named_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setenv("OUTZOOM_SOC", "sm8750")
    assert device_soc() == "SM8750"


@pytest.mark.parametrize(
    ("android", "kernel", "found"),
    [("SM8650", "", "SM8650"), ("SM8550-AC", "", "SM8550"), ("", "SM8750P", "SM8750"), ("", "", "unknown")],
)
def test_the_soc_is_what_android_or_the_kernel_says(monkeypatch, android, kernel, found):
    monkeypatch.delenv("OUTZOOM_SOC", raising=False)
    monkeypatch.setattr(qnn_origin.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(qnn_origin, "_property", lambda name: android)
    monkeypatch.setattr(qnn_origin, "read_text", lambda path: kernel)
    assert device_soc() == found


def test_on_x86_the_soc_is_any(monkeypatch):
    monkeypatch.delenv("OUTZOOM_SOC", raising=False)
    monkeypatch.setattr(qnn_origin.platform, "machine", lambda: "x86_64")
    assert device_soc() is None


def test_open_sides_are_refused(tmp_path):
    specs = [TensorSpec("sample", ("batch", 9, 8, 8), "float32")]
    with pytest.raises(BundleError, match="open sides") as error:
        BACKENDS["onnxruntime-qnn-sm8650"].load(tmp_path / "model.onnx", Loading("fastest", specs, {"batch": 2}))
    assert "without --batch" in error.value.hint


@pytest.mark.skipif(INSTALLED, reason="onnxruntime-qnn is installed")
def test_without_the_package_the_error_names_the_extra():
    with pytest.raises(MissingPackageError, match="'onnxruntime-qnn', which is not installed") as error:
        BACKENDS["onnxruntime-qnn-sm8650"].version()
    assert error.value.hint == "pip install 'outzoom[qnn]'"


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """The small model in fixed point, 16 bits."""
    folder = tmp_path_factory.mktemp("fixed point")
    model = integer_biases(in_int8(rounded(small_model(), inputs, 16), folder))
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def engine(onnx_file, tmp_path_factory):
    return BACKENDS["onnxruntime-qnn-sm8650"].compile(onnx_file, tmp_path_factory.mktemp("engine"))


def load(target, engine, **options):
    return BACKENDS[target].load(engine, Loading("fastest", **options))


@needs_package
def test_a_context_binary_lies_beside_the_model_and_says_what_it_was_made_for(engine):
    (binary,) = engine.parent.glob("*.bin")
    assert binary.stat().st_size > 0
    assert json.loads((engine.parent / ORIGIN_NAME).read_text()) == {
        "soc": "SM8650", "version": version("onnxruntime-qnn")
    }  # fmt: skip
    assert BACKENDS["onnxruntime-qnn-sm8650"].weights_file(engine) == engine


@needs_package
@pytest.mark.parametrize("target", [f"onnxruntime-qnn-{name.lower()}" for name in SOCS])
def test_what_the_emulated_htp_computes_is_near(onnx_file, tmp_path, target):
    made = load(target, BACKENDS[target].compile(onnx_file, tmp_path / "engine"))
    found = made.run(inputs(3))["out"]
    made.close()
    assert found.shape == (1, SIDE * SIDE, CHANNELS)
    assert snr_db(run(small_model(), inputs(3)), found) > 35  # as the same graph on the CPU: the weights' 8 bits


def case_of(folder):
    """A context's folder among those to emulate, with the inputs of a run."""
    case = folder / "SM8650" / "a16w8" / "unet"
    case.mkdir(parents=True)
    np.savez(case / "inputs-probe.npz", **inputs(3))
    return case


@needs_package
def test_a_case_is_emulated_in_a_process_of_its_own(engine, tmp_path):
    case, said = case_of(tmp_path), []
    shutil.copytree(engine.parent, case, dirs_exist_ok=True)
    emulate(tmp_path, 1, said.append)
    found = read_output(case, "probe")
    assert snr_db(run(small_model(), inputs(3)), found.output) > 35
    assert found.cpu_seconds > 0
    assert [line.partition(",")[0] for line in said] == ["1 of 1: SM8650/a16w8/unet/inputs-probe.npz"]


def test_what_was_emulated_elsewhere_is_not_run_again(tmp_path):
    case, said = case_of(tmp_path), []
    np.savez(case / "output-probe.npz", output=np.ones(3, np.float32), cpu_seconds=600.5, cpu_model="a larger one")
    emulate(tmp_path, 1, said.append)
    assert said == []
    found = read_output(case, "probe")
    assert found.output.tolist() == [1, 1, 1]
    assert (found.cpu_seconds, found.cpu_model) == (600.5, "a larger one")


@needs_package
def test_another_socs_and_another_versions_contexts_are_not_opened(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTZOOM_SOC", "SM8550")
    with pytest.raises(BundleError, match="made for SM8650"):
        load("onnxruntime-qnn-sm8650", engine)
    monkeypatch.delenv("OUTZOOM_SOC")
    for file in engine.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / ORIGIN_NAME).write_text('{"soc": "SM8650", "version": "1.0.0"}')
    with pytest.raises(BundleError, match=r"made by onnxruntime-qnn 1\.0\.0"):
        load("onnxruntime-qnn-sm8650", tmp_path / engine.name)


@needs_package
@pytest.mark.parametrize("damage", ["truncated", "missing", "no context"])
def test_a_damaged_context_is_refused(engine, tmp_path, damage):
    for file in engine.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (binary,) = tmp_path.glob("*.bin")
    if damage == "truncated":
        binary.write_bytes(binary.read_bytes()[:100])
    elif damage == "missing":
        binary.unlink()
    else:
        binary.write_bytes(b"\0" * binary.stat().st_size)
    with pytest.raises(BundleError, match="QNN can't load"):
        load("onnxruntime-qnn-sm8650", tmp_path / engine.name)


@needs_package
def test_the_devices_own_target_makes_contexts_when_it_is_opened_and_keeps_them(onnx_file, tmp_path):
    backend = BACKENDS["onnxruntime-qnn"]
    engine = backend.compile(onnx_file, tmp_path / "engine")
    assert backend.weights_file(engine).exists()
    cache = tmp_path / "cache"
    cache.mkdir()
    first = load("onnxruntime-qnn", engine, cache=cache)
    found = first.run(inputs(3))["out"]
    first.close()
    (kept,) = cache.rglob("*.bin")
    written = kept.stat().st_mtime_ns
    again = load("onnxruntime-qnn", engine, cache=cache)
    assert np.array_equal(again.run(inputs(3))["out"], found)
    assert kept.stat().st_mtime_ns == written
    assert snr_db(run(small_model(), inputs(3)), found) > 35


@needs_package
def test_a_model_that_the_htp_takes_nothing_of_is_refused(tmp_path):
    x = ir.Value(name="x", shape=ir.Shape([1, 4]), type=ir.TensorType(ir.DataType.DOUBLE))
    node = ir.node("Sin", [x])
    out = named(node, "out", [1, 4])
    out.type = ir.TensorType(ir.DataType.DOUBLE)
    graph = ir.Graph([x], [out], nodes=[node], initializers=[], opset_imports={"": 21}, name="g")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(OutzoomError, match="left all of"):
        BACKENDS["onnxruntime-qnn-sm8650"].compile(tmp_path / "model.onnx", tmp_path / "engine")


@needs_package
def test_angles_are_left_to_the_cpu_where_they_are_exact(tmp_path):
    """Hexagon computes in float16, in which 999.3 is 999.5."""
    ir.save(angles_apart(angles_model()), tmp_path / "model.onnx")
    target = "onnxruntime-qnn"
    made = load(target, BACKENDS[target].compile(tmp_path / "model.onnx", tmp_path / "engine"))
    angles = np.float64(np.float32(999.3)) * np.array([1.0, 0.5])
    found = made.run({"timestep": np.array([999.3], np.float32)})["out"][0]
    assert np.abs(found - [*np.sin(angles), *np.cos(angles)]).max() < 1e-3  # what joins them is in float16


def plan(checkpoint, out, shapes=Shapes(((64, 64),)), **options):  # noqa: B008
    return Plan(open_checkpoint(checkpoint), ("onnxruntime-qnn",), (read_recipe("a16w8"),), shapes, out, **options)


def write_recipe(folder):
    """A recipe in fixed point whose calibration is short; its name, for build_bundles.

    The ranges of a short one are too narrow for the noise that a build is checked with.
    """
    text = (RECIPES_FOLDER / "a16w8.toml").read_text().replace("min_psnr_db = 25.0", "min_psnr_db = 10.0")
    (folder / "a16w8.toml").write_text(text + "\n" + CALIBRATION)
    return str(folder / "a16w8.toml")


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint, tmp_path_factory, build_bundles):
    """A bundle of the tiny checkpoint that is compiled on the device, which needs no package to build."""
    folder = tmp_path_factory.mktemp("qnn")
    built = build_bundles(tiny_checkpoint, folder, ["onnxruntime-qnn"], [write_recipe(folder)], shallow_skips=1)
    return built["onnxruntime-qnn-a16w8"]


def test_a_bundle_for_the_device_is_built_without_the_package_and_checked_on_onnx_runtime(bundle):
    manifest = open_manifest(bundle).manifest
    assert manifest.checked_on == "onnxruntime"
    assert manifest.tools["onnxruntime-qnn"] == "made on the device"
    parities_db = {name: one.parity_psnr_db for name, one in manifest.components.items()}
    assert min(parities_db.values()) > 20
    assert parities_db["unet"] > 30


def test_nothing_but_angles_is_left_in_float(bundle):
    with Inpainting(open_manifest(bundle)).engine_file("unet") as engine:
        graph = ir.load(engine).graph
    assert {"Einsum", "Sin", "Cos"} <= {node.op_type for node in graph}
    for node in graph:
        if node.op_type in ("Conv", "MatMul", "Gemm", "Add", "Mul", "Softmax"):
            taken = [value.producer() for value in node.inputs if value is not None]
            assert all(one is not None and one.op_type == "DequantizeLinear" for one in taken), node
    rounded = {node.inputs[2].dtype for node in graph if node.op_type == "QuantizeLinear"}
    assert rounded == {ir.DataType.UINT16}


@needs_package
def test_a_keyframe_is_painted_in_emulation_near_to_that_of_onnx_runtime(
    bundle, tiny_checkpoint, build_bundles, tmp_path
):
    exact = build_bundles(tiny_checkpoint, tmp_path, ["onnxruntime"], ["fp32"])["onnxruntime-fp32"]

    def painted(path):
        with open_bundle(path) as zoom:
            picture = np.random.default_rng(0).integers(0, 256, (*zoom.size[::-1], 3), np.uint8)
            keyframes = zoom.keyframes(picture, "a reef", 0.5, Painting(steps=1))
            next(keyframes)
            return next(keyframes).astype(np.float64)

    assert snr_db(painted(exact), painted(bundle)) > 25


@pytest.mark.parametrize("target", ["tensorrt-rtx", "openvino-npu"])
def test_a_recipe_in_fixed_point_is_refused_where_codes_have_zero_for_zero(target):
    with pytest.raises(UserError, match="asymmetric codes"):
        adapted(read_recipe("a16w8"), target)
    assert adapted(read_recipe("a16w8"), "onnxruntime-qnn") == read_recipe("a16w8")


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_a_recipe_that_leaves_floats_is_refused(name):
    with pytest.raises(UserError, match="in fixed point, and the recipe leaves floats"):
        adapted(read_recipe(name), "onnxruntime-qnn-sm8650")


def test_a_hoisted_unet_is_refused_since_attention_is_rounded(tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match="attention's products"):
        plan(tiny_checkpoint, tmp_path, hoist=True)


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_another_device_than_the_htp_is_refused(tmp_path, device):
    with pytest.raises(UserError, match=f"not on '{device}'"):
        load("onnxruntime-qnn-sm8650", tmp_path / "model.onnx", device=device)


@pytest.mark.skipif(INSTALLED, reason="onnxruntime-qnn is installed")
def test_without_the_package_a_build_ahead_is_refused_before_it_starts(tiny_checkpoint, build_bundles, tmp_path):
    with pytest.raises(MissingPackageError, match="onnxruntime-qnn") as error:
        build_bundles(tiny_checkpoint, tmp_path / "out", ["onnxruntime-qnn-sm8650"], ["a16w8"])
    assert error.value.hint == "pip install 'outzoom[qnn]'"
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(INSTALLED, reason="onnxruntime-qnn is installed")
def test_without_the_package_the_reason_why_it_does_not_run_names_it():
    assert "outzoom[qnn]" in (BACKENDS["onnxruntime-qnn"].absent() or "")


def test_several_sizes_are_refused_before_anything_is_built(tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match="engines of one size"):
        plan(tiny_checkpoint, tmp_path, Shapes(((64, 64), (128, 64))))
