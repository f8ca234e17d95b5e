"""The pipeline's answer: loop counts, sums and fronts by hand; what the command line takes, writes and refuses."""

import json
import time
from dataclasses import replace

import pytest

from outzoom import cli
from outzoom.hardware import (
    UseCase,
    Workload,
    bundle_workload,
    component_costs,
    full_size,
    known_devices,
    pareto_front,
    predict,
    read_profile,
    survey,
)
from outzoom.hardware import profiles as profiles_module
from outzoom.hardware.calibration import LEAST_SECONDS, host_profile
from outzoom.hardware.measured import attention_parts, measured_seconds
from outzoom.hardware.profiles import Point
from outzoom.hardware.synthetic import cells, write_chain
from outzoom.hardware.workload import Layer
from outzoom.runtime import open_manifest
from outzoom.runtime.errors import UserError

COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def orin():
    return read_profile("jetson-agx-orin")


def test_how_often_each_component_runs():
    guided, plain = UseCase(20, True), UseCase(20, False)
    assert guided.calls(COMPONENTS) == {"text_encoder": 0, "unet": 40, "vae_encoder": 1, "vae_decoder": 1}
    assert plain.calls(COMPONENTS)["unet"] == 20
    both = [*COMPONENTS, "unet_shallow"]
    assert guided.calls(both)["unet_shallow"] == 0  # it is there, and nobody asks for it
    thirds = UseCase(20, True, whole_every=3).calls(both)
    assert (thirds["unet"], thirds["unet_shallow"]) == (14, 26)
    with pytest.raises(UserError, match="no shallow UNet"):
        UseCase(20, True, whole_every=3).calls(COMPONENTS)
    assert guided.calls_once((*COMPONENTS, "unet_text", "unet_time")) == {
        "text_encoder": 2, "unet_text": 2, "unet_time": 20,
    }  # fmt: skip


def test_a_frame_of_20_guided_steps_takes_17_95_tera_macs():
    case, components = UseCase(20, True), full_size().components
    calls = {**case.calls(components), **case.calls_once(components)}
    macs = {name: sum(layer.macs for layer in layers) for name, layers in components.items()}
    total = sum(calls[name] * macs[name] for name in calls)
    assert total / 1e12 == pytest.approx(17.95, abs=0.005)
    assert 40 * macs["unet"] / total == pytest.approx(0.896, abs=5e-4)


def test_sums_are_those_of_the_components(orin):
    workload, case = full_size("int8"), UseCase(20, True, 5, battery_watt_hours=50)
    costs = component_costs(workload, orin)
    found = predict(workload, orin, case, costs)
    keyframe = 40 * costs["unet"].seconds + costs["vae_encoder"].seconds + costs["vae_decoder"].seconds
    assert found.keyframe_seconds == pytest.approx(keyframe)
    assert found.start_seconds == pytest.approx(2 * costs["text_encoder"].seconds)
    assert found.frames_per_second == pytest.approx(5 / (keyframe + 4 * costs["between_frames"].seconds))
    assert found.watts == pytest.approx(found.joules_per_frame * found.frames_per_second)
    assert found.battery_hours == pytest.approx(50 / found.watts)
    assert found.frames_per_joule == pytest.approx(1 / found.joules_per_frame)
    assert sum(found.components["unet"].energy_by_level_joules.values()) == pytest.approx(costs["unet"].energy_joules)


def test_painting_fewer_frames_gives_more_of_them_for_less(orin):
    workload = full_size("fp16")
    costs = component_costs(workload, orin)
    every, fifth, thirtieth = (predict(workload, orin, UseCase(20, True, n), costs) for n in (1, 5, 30))
    assert fifth.frames_per_second == pytest.approx(5 * every.frames_per_second, rel=0.01)
    assert every.joules_per_frame > fifth.joules_per_frame > thirtieth.joules_per_frame


def test_integers_are_faster_and_take_less_energy_and_traffic(orin):
    half, integers = (predict(full_size(recipe), orin, UseCase()) for recipe in ("fp16", "int8"))
    assert integers.keyframe_seconds < half.keyframe_seconds
    assert integers.keyframe_joules < half.keyframe_joules
    assert integers.dram_gigabytes_per_keyframe < half.dram_gigabytes_per_keyframe


def test_the_front_by_hand(orin):
    base = predict(full_size("int8"), orin, UseCase())
    points = [(10, 2), (20, 4), (5, 3), (20, 5), (10, 2)]
    found = [replace(base, frames_per_second=fps, joules_per_frame=joules) for fps, joules in points]
    assert pareto_front(found) == [True, True, False, False, True]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 10_000}, {"keyframe_every": 0}, {"battery_watt_hours": -1}])
def test_a_use_case_that_can_not_be_is_refused(wrong):
    with pytest.raises(UserError):
        UseCase(**wrong)


def test_a_graph_alone_that_runs_once_a_prompt_has_no_keyframe(orin):
    text = Workload("t", "fp16", 0, 0, {"text_encoder": full_size().components["text_encoder"]})
    with pytest.raises(UserError, match="nothing that runs"):
        predict(text, orin, UseCase())


def test_twelve_devices_and_five_recipes_take_at_most_ten_seconds():
    workloads = [full_size(recipe) for recipe in ("fp16", "int8", "int4", "kmeans4", "sparse24")]
    devices = [read_profile(name) for name in known_devices()[:12]]
    started = time.process_time()
    found = survey(workloads, devices, [UseCase()])
    assert time.process_time() - started < 10
    assert len(found.predictions) + len(found.refusals) == 60


def test_a_bundle_is_predicted_as_it_was_built(tiny_bundles, orin):
    workload = bundle_workload(open_manifest(tiny_bundles["onnxruntime-fp32"]))
    assert (workload.compute, workload.recipe) == ("float32", "fp32")
    assert {layer.input_bits for layer in component_costs(workload, orin)["unet"].layers if layer.is_product} == {32}


# --- devices that were measured


def sums(seconds):
    """Timed sums of 2^21 floats, in which 25,165,824 bytes move."""
    return {"float32": (Point("linear", 8, 8, 8, 1, 1e-6), Point("Add", 2**21, 1, 1, 1, seconds))}


@pytest.mark.parametrize(
    ("by_engine", "gb_per_s"),
    # the second engine makes one pass of a chain of sums: it seems to take nothing for a longer one, or next to it
    [
        ({"onnxruntime": sums(1e-3)}, 25.165824),
        ({"onnxruntime": sums(1e-3), "openvino-cpu": sums(LEAST_SECONDS)}, 25.165824),
        ({"onnxruntime": sums(1e-3), "openvino-cpu": sums(3e-5)}, 25.165824),
    ],
)
def test_bandwidth_is_told_by_the_engine_that_reads_all_operands(by_engine, gb_per_s):
    found = host_profile(by_engine).bandwidth_gb_per_s
    assert found.value == pytest.approx(gb_per_s)
    assert found.confidence == "measured"


def test_a_bandwidth_that_no_engine_tells_is_an_assumption():
    assert host_profile({"openvino-cpu": sums(LEAST_SECONDS)}).bandwidth_gb_per_s.confidence == "unverified"


def product(kind="linear", rows=64, width=32, batch=1, **changes):
    return Layer("p", kind, batch, width, width, rows, 1, 1, 1, 1, 1, 32, 32, 32, **changes)


def host(points):
    base = read_profile("raspberry-pi-5")
    measured = {"onnxruntime": {"float32": tuple(points)}}
    return type(base)(
        **{name: getattr(base, name) for name in base.__struct_fields__ if name != "measured"}, measured=measured
    )


def test_a_layer_takes_what_one_like_it_took():
    profile = host([Point("linear", 64, 32, 32, 1, 2e-3), Point("call", 1, 1, 1, 1, 1e-4)])
    found = measured_seconds([product(), product()], profile, "onnxruntime")
    assert found.tolist() == pytest.approx([2.1e-3, 2e-3])  # the first bears the call


def test_between_timed_layers_rates_are_interpolated_and_beyond_them_kept():
    points = [Point("linear", 16, 32, 32, 1, 1e-3), Point("linear", 256, 32, 32, 1, 4e-3)]
    rates = [16 * 1024 / 1e-3, 256 * 1024 / 4e-3]
    profile = host(points)
    middle, beyond = measured_seconds([product(rows=64), product(rows=1024)], profile, "onnxruntime")
    assert middle == pytest.approx(64 * 1024 / (rates[0] * rates[1]) ** 0.5)
    assert beyond == pytest.approx(1024 * 1024 / rates[1])


def test_what_surrounds_attention_is_in_its_time():
    plain = Layer("m", "move", 1, 4, 1, 8, 1, 1, 1, 1, 1, 32, 32, 32)
    softmax, residual = replace(plain, kind="softmax"), replace(plain, kind="elementwise", operands=2)
    scores, mixed = product("attention", batch=2), product("attention", batch=2)
    layers = [residual, product(), plain, scores, softmax, mixed, plain, product(), residual]
    assert attention_parts(layers) == [False, False, True, False, True, True, True, False, False]
    value = product()  # computed between the others, as OpenVINO writes its graphs
    layers = [residual, product(), plain, value, scores, softmax, value, plain, mixed, plain, residual]
    expected = [False, False, True, False, False, True, False, True, True, True, False]
    assert attention_parts(layers) == expected


def test_a_target_that_was_not_measured_is_refused():
    with pytest.raises(UserError, match="openvino-cpu"):
        measured_seconds([product()], host([Point("linear", 1, 1, 1, 1, 1.0)]), "openvino-cpu")


@pytest.mark.parametrize("data_type", ["float32", "float16", "int8"])
def test_synthetic_layers_run_and_are_what_they_say(tmp_path, data_type):
    """One of each kind, in the real engine, and read again as the layers that they are meant to be."""
    from outzoom.hardware.bundles import graph_workload
    from outzoom.runtime.backends import Loading, backend_for

    kinds = {cell.kind: cell for cell in reversed(list(cells()))}  # the first of each
    for cell in kinds.values():
        feeds = write_chain(tmp_path / "model.onnx", cell, 2, data_type)
        engine = backend_for("onnxruntime").load(tmp_path / "model.onnx", Loading())
        assert engine.run(feeds)["out"].shape == cell.shape
        engine.close()
        if not cell.is_product:
            continue
        layers = [one for one in graph_workload(tmp_path / "model.onnx").components["unet"] if one.is_product]
        per_cell = 2 if cell.kind == "attention" else 1
        assert sum(layer.macs for layer in layers) == 2 * per_cell * cell.rows * cell.columns * cell.depth
        assert {layer.data_type for layer in layers} == {"int8" if data_type == "int8" else "float32"}


def test_synthetic_layers_have_sizes_that_no_model_of_ours_has():
    sizes = {(layer.rows, layer.columns, layer.depth) for each in full_size().components.values() for layer in each}
    assert not {(cell.rows, cell.columns, cell.depth) for cell in cells() if cell.is_product} & sizes


# --- the command line


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles_module, "host_file", lambda: tmp_path / "host.json")

    def run(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_predict_prints_a_table_or_one_object(run):
    code, out, _ = run("predict", "--device", "jetson-orin-nano", "--recipe", "int8", "--battery-wh", "50")
    assert code == 0 and "jetson-orin-nano" in out and "modelled" in out
    code, out, _ = run("predict", "--device", "jetson-orin-nano", "--recipe", "int8", "--keyframe-every", "5", "--json")
    (one,) = json.loads(out)["predictions"]
    assert (one["device"], one["recipe"], one["keyframe_every"], one["method"]) == (
        "jetson-orin-nano",
        "int8",
        5,
        "modelled",
    )


def test_predict_of_a_bundle_writes_a_page_and_its_numbers(run, tiny_bundles, tmp_path):
    out = tmp_path / "out"
    code, *_ = run("predict", tiny_bundles["openvino-cpu-fp32"], "--device", "raspberry-pi-5", "--out", out)
    assert code == 0
    found = json.loads((out / "predict.json").read_text())
    assert {one["recipe"] for one in found["predictions"]} == {"fp32"}
    assert found["profiles"]["raspberry-pi-5"]["bandwidth_gb_per_s"]["confidence"] == "computed"
    page = (out / "predict.html").read_text()
    assert page.count("<svg") >= 5
    assert not any(outside in page for outside in ("<script", "<link", 'src="http', "url(http"))


def test_what_if_there_were_less_bandwidth(run):
    def unet_ms(*arguments):
        _, out, _ = run("predict", "--device", "jetson-thor", "--recipe", "fp16", "--json", *arguments)
        return json.loads(out)["predictions"][0]["components"]["unet"]["latency_ms"]

    assert unet_ms("--set", "bandwidth_gb_per_s=34") > 2 * unet_ms()


def test_a_device_that_can_not_is_said_to(run):
    code, out, _ = run("predict", "--device", "edge-tpu", "--device", "tpu-v1", "--recipe", "int8", "--recipe", "fp16")
    assert code == 0
    assert "edge-tpu can't compute" in out
    code, _, err = run("predict", "--device", "edge-tpu", "--recipe", "fp16")
    assert code == 2 and "no device can run it" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "jetson"], "no device 'jetson'"),
        (["--device", "host"], "not measured yet"),
        (["--recipe", "int3"], "int3"),
        (["--set", "speed=3"], "speed"),
        (["--set", "clock_mhz"], "--set"),
        (["--steps", "0"], "steps"),
        (["--keyframe-every", "0"], "keyframe"),
        (["--battery-wh", "-1"], "battery"),
        (["nowhere"], "no bundle"),
        (["model.onnx"], "can't be read"),
        (["nowhere", "--recipe", "int8"], "--recipe"),
        (["--recipe", "int8", "--recipe", "int8"], "twice"),
        (["--device", "tpu-v1", "--device", "tpu-v1"], "twice"),
    ],
)
def test_mistakes_are_told(run, arguments, message):
    code, _, err = run("predict", *arguments)
    assert code == 2
    assert message in err


def test_devices_are_listed_with_how_sure_they_are(run):
    code, out, _ = run("devices", "--json")
    found = json.loads(out)
    assert code == 0 and set(found["devices"]) == set(known_devices())
    assert "onnxruntime" in found["targets"] and found["host"] is None
    assert found["recipes"]["onnxruntime"]["fp32"]["made"] == "ahead"
    assert set(found["recipes"]["onnxruntime"]["fp32"]["components"]) == set(COMPONENTS)
    assert found["recipes"]["openvino-npu"]["fp32"] == {
        "made": "refused", "reason": "its device computes in 16 bits, the recipe asks for 32", "components": {}
    }  # fmt: skip
    code, out, _ = run("devices")
    assert "raspberry-pi-5" in out and "unverified" in out
    assert "openvino-npu refuses fp32: its device computes in 16 bits" in " ".join(out.split())


def test_a_name_in_a_profile_can_not_get_into_the_page_as_code(run, tmp_path):
    text = (profiles_module.FOLDER / "raspberry-pi-5.toml").read_text("utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("LPDDR4X-4267 on 32 bits", "<script>alert(1)</script>"), "utf-8")
    code, *_ = run("predict", "--device", "mine.toml", "--recipe", "int8", "--out", "o")
    assert code == 0
    assert "<script>" not in (tmp_path / "o" / "predict.html").read_text()
