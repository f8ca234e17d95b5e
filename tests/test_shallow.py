"""The shallow UNet: cut where it should be, equal to the whole one with fresh features, and near it with old ones."""

import dataclasses
import shutil

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from outzoom.export import Plan, Shapes, open_checkpoint, read_recipe
from outzoom.export.compiling import Part, _parity_db
from outzoom.export.plan import skip_connections
from outzoom.export.reading import OUTPUT
from outzoom.export.shallow import split_shallow
from outzoom.runtime import BundleError, OutzoomError, Painting, UserError, Zoom, open_manifest
from outzoom.runtime.bundle import DEEP_FEATURES, SHALLOW_UNET
from outzoom.runtime.denoising import Schedule

# Two levels: `first` and `second` go down, `low` is the bottom, and each way up begins with a join.
TWO_LEVELS = """g (float[1,1,2,2] x, float[1] t, float[1] c) => (float[1,1,2,2] y)
<float[1] two = {2.0}> {
    first = Mul(x, t)
    second = Mul(first, two)
    low = Mul(second, c)
    join1 = Concat <axis = 1> (low, second)
    up1 = ReduceSum <keepdims = 1> (join1, axes)
    join2 = Concat <axis = 1> (up1, first)
    y = ReduceSum <keepdims = 1> (join2, axes)
}"""


def model(text=TWO_LEVELS):
    text = text.replace("two = {2.0}>", "two = {2.0}, int64[1] axes = {1}>")
    made = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for node in made.graph:
        channels = 2 if node.op_type == "Concat" else 1
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape([1, channels, 2, 2]), ir.DataType.FLOAT
    return made


def run(model, feeds):
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


FEEDS = {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2), "t": np.float32([3]), "c": np.float32([5])}


def test_the_shallow_unet_goes_no_deeper_than_its_skip_connections():
    split = split_shallow(model(), 1)
    assert [node.op_type for node in split.shallow.graph] == ["Mul", "Concat", "ReduceSum"]
    assert [value.name for value in split.shallow.graph.inputs] == ["x", "t", DEEP_FEATURES]  # c is below
    assert [value.name for value in split.whole.graph.outputs] == ["y", DEEP_FEATURES]
    assert list(split.shallow.graph.initializers) == ["axes"]


def test_with_fresh_features_it_makes_what_the_whole_one_makes():
    whole = split_shallow(model(), 1).whole
    made = run(whole, FEEDS)  # x t (1 + 2 + 2 c) = 39 x
    assert made["y"].ravel().tolist() == [0, 39, 78, 117]
    assert made[DEEP_FEATURES].ravel().tolist() == [0, 36, 72, 108]
    shallow = run(split_shallow(model(), 1).shallow, {**FEEDS, DEEP_FEATURES: made[DEEP_FEATURES]} | {"c": None})
    assert shallow["y"].tolist() == made["y"].tolist()


def test_features_are_taken_before_they_are_rounded():
    rounded = TWO_LEVELS.replace("(up1, first)", "(back, first)").replace(
        "join2 =", "codes = QuantizeLinear(up1, two)\n back = DequantizeLinear(codes, two)\n join2 ="
    )
    split = split_shallow(model(rounded.replace("float[1] two = {2.0}", "float two = {2.0}")), 1)
    assert [node.op_type for node in split.shallow.graph][1:3] == ["QuantizeLinear", "DequantizeLinear"]
    assert split.shallow.graph.inputs[-1].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("skips", [0, 2, 3])
def test_there_must_be_something_left_below(skips):
    with pytest.raises(OutzoomError, match=f"2 skip connections has no shallow one with {skips}"):
        split_shallow(model(), skips)


def test_the_first_call_is_whole_and_then_one_in_so_many():
    schedule = Schedule(range(4, 10), whole_every=3)
    assert [schedule.is_whole(call) for call in schedule.calls] == [True, False, False] * 2


def test_calls_are_guided_whose_middle_is_in_the_part():
    schedule = Schedule(range(10), guided=(0.2, 0.6))
    assert [schedule.is_guided(call) for call in schedule.calls] == [False] * 2 + [True] * 4 + [False] * 4
    assert all(Schedule(range(3)).is_guided(call) for call in range(3))


@pytest.fixture(scope="module")
def shallow_bundles(tiny_checkpoint, tmp_path_factory, build_bundles):
    out = tmp_path_factory.mktemp("shallow-bundles")
    return build_bundles(tiny_checkpoint, out, ["onnxruntime"], ["fp32"], batch=2, shallow_skips=1)


@pytest.fixture(scope="module")
def zoom(shallow_bundles):
    with Zoom(open_manifest(shallow_bundles["onnxruntime-fp32"])) as opened:
        yield opened


def painted(zoom, **painting):
    """A picture with its left half painted, and how often each engine ran for how many pictures."""
    width, height = zoom.size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    mask = np.arange(width)[None] < np.full((height, 1), width // 2)
    inpainting, runs = zoom.inpainting, []
    run_each = type(inpainting)._run_each

    def counted(component, several, outputs):
        runs.append((component, len(several)))
        return run_each(inpainting, component, several, outputs)

    inpainting._run_each = counted
    try:
        made = inpainting.paint(picture, mask, "a reef", Painting(steps=4, scheduler="ddim", **painting))
    finally:
        del inpainting._run_each
    return made, [one for one in runs if one[0].startswith("unet")]


def test_between_whole_steps_the_shallow_unet_runs_for_both_texts(zoom):
    made, runs = painted(zoom, whole_every=3)
    assert runs == [("unet", 2), (SHALLOW_UNET, 2), (SHALLOW_UNET, 2), ("unet", 2)]
    exact, _ = painted(zoom)
    assert not np.array_equal(made, exact)  # the features are old
    assert np.abs(made.astype(float) - exact).mean() < np.abs(painted(zoom, seed=1)[0].astype(float) - exact).mean()


def test_a_text_whose_guidance_begins_late_gets_features_of_its_own(zoom):
    _, runs = painted(zoom, whole_every=4, guided=(0.5, 1.0))
    assert runs == [("unet", 1), (SHALLOW_UNET, 1), ("unet", 2), (SHALLOW_UNET, 2)]


def test_calls_outside_the_guided_part_run_one_text(zoom):
    _, runs = painted(zoom, guided=(0.0, 0.5))
    assert runs == [("unet", 2), ("unet", 2), ("unet", 1), ("unet", 1)]


def test_a_bundle_without_a_shallow_unet_says_how_to_get_one(tiny_bundles):
    plain = Zoom(open_manifest(tiny_bundles["onnxruntime-fp32"]))
    with plain, pytest.raises(UserError, match="has no shallow UNet") as caught:
        painted(plain, whole_every=2)
    assert "export-all --shallow" in caught.value.hint


def test_a_shallow_unet_that_takes_what_the_whole_one_does_not_is_refused(shallow_bundles, tmp_path):
    bundle = shutil.copytree(shallow_bundles["onnxruntime-fp32"], tmp_path / "bundle")
    manifest = open_manifest(bundle).manifest
    shallow = manifest.components[SHALLOW_UNET]
    other = msgspec.structs.replace(shallow.inputs[0], name="else")
    components = {
        **manifest.components,
        SHALLOW_UNET: msgspec.structs.replace(shallow, inputs=(*shallow.inputs, other)),
    }
    file = bundle / "bundle.json"
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, components=components)))
    with pytest.raises(BundleError, match="unet_shallow takes what unet does not: 'else'"):
        open_manifest(bundle)


def test_a_whole_unet_that_is_wrong_shows_in_the_parity_though_the_shallow_one_is_right(tmp_path):
    np.savez(tmp_path / "0.npz", x=np.float32([0, 1, 2]), **{OUTPUT: np.float32([0, 2, 4])})
    parts = []
    for name, factor in (("whole", 3.0), ("shallow", 2.0)):
        text = f"g (float[3] x) => (float[3] y) <float f = {{{factor}}}> {{ y = Mul(x, f) }}"
        ir.save(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {text}'), tmp_path / f"{name}.onnx")
        parts.append(Part(tmp_path / f"{name}.onnx", ("x",)))
    by_hand = 10 * np.log10(4**2 / ((0 + 1 + 4) / 3))  # 0, 3, 6 in place of 0, 2, 4
    assert _parity_db(parts, tmp_path, "onnxruntime", "float32", [{}]) == pytest.approx(by_hand)
    assert _parity_db(parts[1:], tmp_path, "onnxruntime", "float32", [{}]) == np.inf


@pytest.mark.parametrize("skips", [-1, 12, 100])
def test_more_skip_connections_than_there_are_are_refused_before_anything_is_built(tiny_checkpoint, tmp_path, skips):
    opened = open_checkpoint(tiny_checkpoint)
    plan = Plan(opened, ("onnxruntime",), (read_recipe("fp32"),), Shapes(((64, 64),)), tmp_path)
    if skips >= 0:
        skips = max(skips, skip_connections(opened))
    with pytest.raises(UserError, match="skip connections") as caught:
        dataclasses.replace(plan, shallow_skips=skips)
    assert "--shallow 1 to" in caught.value.hint
