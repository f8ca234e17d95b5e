"""Where engines run, and what is compiled there: devices that are here, that are not, and graphs made for those."""

import json
import os

import numpy as np
import onnx_ir as ir
import pytest

from outzoom.cli import run
from outzoom.export import read_recipe
from outzoom.export.targets import FORMS, adapted, refusal
from outzoom.export.trace import _drop_nan_guards
from outzoom.runtime import (
    Inpainting,
    OutzoomError,
    Painting,
    UserError,
    compile_bundle,
    open_bundle,
    open_manifest,
    parse_devices,
)
from outzoom.runtime.backends import BACKENDS
from outzoom.runtime.backends.openvino import check_device
from outzoom.runtime.backends.openvino_operations import check_operations
from outzoom.runtime.devices import device_of

HERE = ["CPU", "GPU.0", "GPU.1"]


# what a command line says


def test_one_device_is_for_all_components_and_a_list_for_those_that_it_names():
    assert set(parse_devices(" GPU ").values()) == {"GPU"} and len(parse_devices("GPU")) == 4
    assert parse_devices("unet=NPU,vae_decoder=GPU") == {"unet": "NPU", "vae_decoder": "GPU"}
    assert parse_devices("unet=HETERO:NPU,CPU,vae_decoder=AUTO") == {"unet": "HETERO:NPU,CPU", "vae_decoder": "AUTO"}


def test_the_parts_of_the_unet_run_where_the_unet_does():
    for part in ("unet", "unet_shallow", "unet_text", "unet_time"):
        assert device_of({"unet": "GPU", "vae_decoder": "CPU"}, part) == "GPU"
    assert device_of({"unet": "GPU"}, "text_encoder") is None


@pytest.mark.parametrize("text", ["", " ", "=GPU", "GPU,unet=NPU", "unet=", "unet=GPU,unet=NPU", "u net=GPU"])
def test_what_names_no_device_is_refused(text):
    with pytest.raises(UserError, match="--device"):
        parse_devices(text)


def test_a_component_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="vae_decode") as refused:
        parse_devices("vae_decode=GPU")
    assert "vae_decoder" in refused.value.hint


# what OpenVINO sees


@pytest.mark.parametrize("device", ["CPU", "GPU", "GPU.1", "AUTO", "HETERO", "AUTO:GPU,CPU", "HETERO:GPU.0,CPU"])
def test_a_device_that_is_here_is_taken(device):
    check_device(HERE, device)


@pytest.mark.parametrize("device", ["NPU", "GPU.2", "HETERO:NPU,CPU", "AUTO:CPU,NPU"])
def test_a_device_that_is_not_here_is_refused_with_what_is(device):
    with pytest.raises(UserError, match=r"sees no .* on this machine; it sees CPU, GPU\.0, GPU\.1"):
        check_device(HERE, device)


@pytest.mark.parametrize("device", ["TPU", "cpu", "AUTO:", "CPU,GPU", "HETERO:CPU,,GPU", "MULTI:CPU"])
def test_what_is_no_device_of_openvino_is_refused(device):
    with pytest.raises(UserError):
        check_device(HERE, device)


# bundles for other devices than the one that builds


@pytest.fixture(scope="module")
def away(tiny_checkpoint, tmp_path_factory, build_bundles):
    out = tmp_path_factory.mktemp("away")
    return build_bundles(tiny_checkpoint, out, ["openvino-gpu", "openvino-npu"], ["int8", "fp16"])


def keyframe(bundle, **options):
    with open_bundle(bundle, **options) as zoom:
        picture = np.random.default_rng(0).integers(0, 256, (*zoom.size[::-1], 3), np.uint8)
        keyframes = zoom.keyframes(picture, "a reef", 0.5, Painting(steps=1))
        next(keyframes)
        return next(keyframes)


def test_an_engine_for_a_device_that_is_not_here_is_checked_on_the_processor_and_says_so(away):
    for name, bundle in away.items():
        manifest = open_manifest(bundle).manifest
        assert manifest.checked_on == "openvino-cpu", name
        assert min(one.parity_psnr_db for one in manifest.components.values()) > 25, name


@pytest.mark.skipif(bool(BACKENDS["openvino-npu"].absent() is None), reason="there is an NPU here")
def test_it_does_not_run_without_its_device_but_on_another_that_is_named(away, tiny_checkpoint):
    with pytest.raises(UserError, match="sees no NPU") as refused:
        keyframe(away["openvino-npu-fp16"])
    assert "Intel's NPU driver" in refused.value.hint
    everywhere = keyframe(away["openvino-npu-fp16"], devices=parse_devices("CPU"))
    assert np.array_equal(keyframe(away["openvino-gpu-fp16"], devices=parse_devices("CPU")), everywhere)


def test_its_codes_have_zero_for_zero(away):
    import openvino as ov

    with Inpainting(open_manifest(away["openvino-npu-int8"])).engine_file("unet") as engine:
        operations = ov.Core().read_model(engine).get_ops()
    rounded = [node for node in operations if node.get_type_name() == "FakeQuantize"]
    assert rounded
    for node in rounded:
        low, high = (node.input_value(index).get_node().get_data() for index in (1, 2))
        assert np.allclose(low * 127, -high * 128, rtol=1e-5), node.get_friendly_name()


def test_a_recipe_in_single_precision_is_refused_for_a_device_that_has_none():
    assert "16 bits" in (refusal(read_recipe("fp32"), "openvino-npu") or "")
    with pytest.raises(UserError, match=r"fp32.*openvino-npu"):
        adapted(read_recipe("fp32"), "openvino-npu")
    assert adapted(read_recipe("fp32"), "openvino-gpu") == read_recipe("fp32")


def test_every_target_has_a_form_and_is_checked_where_engines_run():
    assert FORMS.keys() == BACKENDS.keys()
    assert all(form.checked_on is None or BACKENDS[form.checked_on].absent() is None for form in FORMS.values())


def test_an_operation_that_a_plugin_lacks_is_named_and_counted():
    import openvino as ov
    from openvino import opset13 as op

    given = op.parameter([4], np.float32)
    model = ov.Model([op.select(op.is_nan(given), op.constant(np.float32(0)), given)], [given])
    check_operations(model, "CPU")
    check_operations(model, "GPU")
    with pytest.raises(OutzoomError, match=r"NPU has no operation IsNaN \(1\)"):
        check_operations(model, "NPU")


# PyTorch's guard against rows that are masked out whole


def guarded(mask):
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    guarded (float[2, 3] scores) => (float[2, 3] shares) {
        masked = Add(scores, mask)
        soft = Softmax<axis = -1>(masked)
        bad = IsNaN(soft)
        chosen = Where(bad, zero, soft)
        shares = Identity(chosen)
    }
    """
    model = ir.from_onnx_text(text)
    for name, array in (("mask", np.array(mask, np.float32)), ("zero", np.zeros((), np.float32))):
        value = next(one for node in model.graph for one in node.inputs if one is not None and one.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.initializers[name] = value
    return model


def test_the_guard_goes_where_every_row_keeps_something():
    model = guarded([[0, -np.inf, -np.inf], [0, 0, -np.inf]])
    _drop_nan_guards(model)
    assert [node.op_type for node in model.graph] == ["Add", "Softmax", "Identity"]
    assert model.graph.node(2).inputs[0].producer().op_type == "Softmax"


def test_the_guard_stays_where_a_row_is_masked_out_whole():
    model = guarded([[0, 0, 0], [-np.inf, -np.inf, -np.inf]])
    _drop_nan_guards(model)
    assert [node.op_type for node in model.graph] == ["Add", "Softmax", "IsNaN", "Where", "Identity"]


# compiling on the device


def test_what_is_compiled_is_kept_and_found_the_next_time(tiny_bundles, tmp_path):
    bundle = open_manifest(tiny_bundles["openvino-cpu-fp32"])
    first = list(compile_bundle(bundle, tmp_path / "kept", {}))
    assert [one.component for one in first] == list(bundle.manifest.components)
    assert not any(one.was_kept for one in first) and all(one.kept_bytes > 0 for one in first)
    again = list(compile_bundle(bundle, tmp_path / "kept", {}))
    assert all(one.was_kept for one in again)
    assert [one.kept_bytes for one in again] == [one.kept_bytes for one in first]


def test_compile_prints_what_it_did_and_for_a_device_that_is_not_here_what_to_do(tiny_bundles, capsys):
    bundle = str(tiny_bundles["openvino-cpu-fp32"])
    assert run(["compile", bundle, "--device", "AUTO", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {one["device"] for one in made["engines"]} == {"AUTO"}
    assert run(["compile", bundle]) == 0
    assert "vae_decoder" in capsys.readouterr().out
    if BACKENDS["openvino-npu"].absent() is not None:
        assert run(["compile", bundle, "--device", "unet=NPU", "--json"]) == 2
        assert "sees no NPU" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_compile_needs_a_place_to_keep_what_it_makes(tiny_bundles, tmp_path, monkeypatch, capsys):
    bundle = str(tiny_bundles["openvino-cpu-fp32"])
    monkeypatch.setenv("OUTZOOM_CACHE", "")
    assert run(["compile", bundle]) == 2
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OUTZOOM_CACHE", str(tmp_path / "file"))
    assert run(["compile", bundle]) == 2
    assert "can't be kept" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root writes everywhere")
def test_a_cache_without_rights_is_refused(tiny_bundles, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="can't be kept"):
        list(compile_bundle(open_manifest(tiny_bundles["openvino-cpu-fp32"]), tmp_path, {}))


def test_a_component_runs_on_the_device_that_is_named_for_it_and_paints_the_same(tiny_bundles):
    bundle = tiny_bundles["openvino-cpu-fp32"]
    expected = keyframe(bundle)
    assert np.array_equal(keyframe(bundle, devices=parse_devices("unet=AUTO,vae_decoder=HETERO:CPU")), expected)
    with pytest.raises(UserError, match="run on the CPU, not on 'GPU'"):
        keyframe(tiny_bundles["onnxruntime-fp32"], devices=parse_devices("GPU"))
