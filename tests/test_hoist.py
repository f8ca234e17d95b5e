"""Hoisting: the parts and the step together are the model, and the step is rid of what it need not do."""

from collections import defaultdict

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from outzoom.benchmarks.hoisting import HoistingResult, measure_hoisting
from outzoom.export import Shapes, open_checkpoint
from outzoom.export.hoist import hoist
from outzoom.export.parity import tensor_psnr_db
from outzoom.export.trace import load_skeleton, save_skeleton, trace
from outzoom.runtime import OutzoomError, Painting, UserError, Zoom, open_manifest
from outzoom.runtime.bundle import HOISTED_INPUTS
from outzoom.runtime.inpainting import PROMPTS_KEPT, TIMESTEPS_KEPT, Inpainting

PARTS = {"text": "c", "time": "t"}


def model(text):
    """The model of a graph in ONNX's text format, in which a name can hold no dot: "__" stands for it."""
    made = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for value in list(made.graph.initializers.values()):
        value.name = value.name.replace("__", ".")
    return made


def operators(model):
    return [node.op_type for node in model.graph]


def signature(model):
    return [v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs]


def weights(model):
    return list(model.graph.initializers)


def run(model, feeds):
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def run_hoisted(hoisted, feeds, parts=PARTS):
    made = {}
    for part, source in parts.items():
        if part in hoisted.parts:
            made |= run(hoisted.parts[part], {source: feeds[source]})
    own = {value.name: feeds[value.name] for value in hoisted.step.graph.inputs if value.name not in made}
    return run(hoisted.step, own | made)


ATTENTION = """g (float[1,3,2] x, float[1] t, float[1,4,2] c) => (float[1,3,2] y)
    <float[2,2] g__q__weight = {1,2,3,4}, float[2,2] g__k__weight = {5,6,7,8}, float[2,2] g__v__weight = {9,1,2,3},
     float[1,2] g__time__weight = {1,-1}, float[1] half = {0.5}> {
    a = Mul(t, half)
    b = Mul(a, g__time__weight)
    h = Add(x, b)
    q = MatMul(h, g__q__weight)
    ck = MatMul(c, g__k__weight)
    kt = Transpose<perm = [0, 2, 1]>(ck)
    ks = Mul(kt, half)
    cv = MatMul(c, g__v__weight)
    s = MatMul(q, ks)
    p = Softmax<axis = -1>(s)
    y = MatMul(p, cv)
}"""


def test_each_node_goes_where_its_inputs_are():
    hoisted = hoist(model(ATTENTION), PARTS)
    assert operators(hoisted.step) == ["Add", "MatMul", "MatMul", "Softmax", "MatMul"]
    assert signature(hoisted.step) == (["x", "time", "k", "v"], ["y"])
    assert weights(hoisted.step) == ["g.q.weight"]
    text, time = hoisted.parts["text"], hoisted.parts["time"]
    assert sorted(operators(text)) == ["MatMul", "MatMul", "Mul", "Transpose"]  # k leaves transposed and scaled
    assert signature(text) == (["c"], ["k", "v"])
    assert sorted(weights(text)) == ["g.k.weight", "g.v.weight", "half"]
    assert operators(time) == ["Mul", "Mul"]
    assert signature(time) == (["t"], ["time"])
    assert sorted(weights(time)) == ["g.time.weight", "half"]  # on both sides
    assert [v.shape.numpy() for v in hoisted.step.graph.inputs[1:]] == [(1, 2), (1, 2, 4), (1, 4, 2)]
    assert {v.dtype for v in hoisted.step.graph.inputs} == {ir.DataType.FLOAT}


def test_the_model_itself_is_not_changed():
    given = model(ATTENTION)
    before = ir.to_proto(given).SerializeToString()
    hoist(given, PARTS)
    assert ir.to_proto(given).SerializeToString() == before


def test_the_same_model_is_split_the_same_every_time():
    first, second = hoist(model(ATTENTION), PARTS), hoist(model(ATTENTION), PARTS)
    for one, other in zip([first.step, *first.parts.values()], [second.step, *second.parts.values()], strict=True):
        assert ir.to_proto(one).SerializeToString() == ir.to_proto(other).SerializeToString()


def test_a_weight_is_handed_over_and_not_read():
    def refuse():
        raise AssertionError("a weight was read")

    given = ShapeInferencePass()(model(ATTENTION)).model
    for name, value in given.graph.initializers.items():
        value.const_value = ir.LazyTensor(refuse, value.dtype, shape=value.shape, name=name)
    hoisted = hoist(given, PARTS)
    found = hoisted.parts["text"].graph.initializers["g.k.weight"].const_value
    assert found is given.graph.initializers["g.k.weight"].const_value


def test_a_repetition_stays_in_the_step_and_a_plain_transposition_leaves_it():
    hoisted = hoist(
        model("""g (float[2,2,3] x, float[3,2] c) => (float[2,2,3] y)
            <int64[3] shape = {2, 2, 3}, int64[2] flat = {1, 6}, int64[1] axis = {0}> {
            a = Exp(c)
            b = Transpose<perm = [1, 0]>(a)
            d = Unsqueeze(b, axis)
            e = Expand(d, shape)
            y = Add(x, e)
        }"""),
        {"text": "c"},
    )
    assert operators(hoisted.parts["text"]) == ["Exp", "Transpose", "Unsqueeze"]
    assert operators(hoisted.step) == ["Expand", "Add"]
    assert [v.shape.numpy() for v in hoisted.parts["text"].graph.outputs] == [(1, 2, 3)]


def test_a_value_that_needs_both_inputs_stays():
    hoisted = hoist(
        model("""g (float[2] x, float[2] t, float[2] c) => (float[2] y) {
            a = Exp(c)
            b = Exp(t)
            d = Mul(a, b)
            e = Neg(d)
            y = Add(x, e)
        }"""),
        PARTS,
    )
    assert operators(hoisted.step) == ["Mul", "Neg", "Add"]
    assert signature(hoisted.step) == (["x", "text.0", "time.0"], ["y"])


def test_an_input_that_the_step_reads_as_it_is_passes_through_its_part():
    hoisted = hoist(model("g (float[2] x, float[2] c) => (float[2] y) { y = Add(x, c) }"), {"text": "c"})
    assert operators(hoisted.parts["text"]) == ["Identity"]
    assert signature(hoisted.parts["text"]) == (["c"], ["text.0"])
    assert signature(hoisted.step) == (["x", "text.0"], ["y"])


def test_an_output_of_the_model_stays_one_of_the_step():
    hoisted = hoist(
        model("""g (float[2] x, float[4] c) => (float[2] y, float[2] a) {
            a, b = Split<num_outputs = 2>(c)
            d = Add(a, b)
            y = Add(x, d)
        }"""),
        {"text": "c"},
    )
    assert signature(hoisted.step) == (["x", "text.0", "text.1"], ["y", "a"])
    feeds = {"x": np.float32([1, 2]), "c": np.float32([3, 4, 5, 6])}
    assert run_hoisted(hoisted, feeds, {"text": "c"})["y"].tolist() == [9, 12]


def test_what_a_subgraph_reads_counts_as_read():
    hoisted = hoist(
        model("""g (float[2] x, float[2] c, bool z) => (float[2] y) {
            a = Exp(c)
            y = If(z) <then_branch = yes () => (float[2] u) { u = Add(x, a) },
                       else_branch = no () => (float[2] w) { w = Neg(x) }>
        }"""),
        {"text": "c"},
    )
    assert signature(hoisted.step) == (["x", "z", "text.0"], ["y"])
    feeds = {"x": np.float32([1, 2]), "c": np.zeros(2, np.float32), "z": np.array(True)}
    assert run_hoisted(hoisted, feeds, {"text": "c"})["y"].tolist() == [2, 3]


def test_a_part_that_the_step_takes_nothing_from_is_left_out():
    hoisted = hoist(model("g (float[2] x, float[2] c) => (float[2] y) { y = Neg(x) }"), {"text": "c"})
    assert hoisted.parts == {}
    assert signature(hoisted.step) == (["x"], ["y"])


def test_a_shape_that_only_running_tells_is_refused():
    given = model("g (float[2] x, float[2] c) => (float[2] y) { a = NonZero(c)\nb = Cast<to = 1>(a)\ny = Add(x, b) }")
    with pytest.raises(OutzoomError, match="can't leave the step: its shape is"):
        hoist(given, {"text": "c"})


def test_an_input_that_is_not_there_is_named():
    with pytest.raises(OutzoomError, match="'prompt'"):
        hoist(model(ATTENTION), {"text": "prompt"})


@st.composite
def graphs(draw):
    """A random graph over three inputs, a constant and a weight; every value is (2, 3)."""
    lines = []
    known = ["x", "t", "c", "g__l__weight", "k"]
    for number in range(draw(st.integers(1, 12))):
        name = f"n{number}"
        first, second = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        how = draw(st.sampled_from(["Add", "Sub", "Max", "Neg", "Exp", "Twice", "Repeat", "Split"]))
        if how in ("Add", "Sub", "Max"):
            lines.append(f"{name} = {how}({first}, {second})")
        elif how == "Twice":
            lines += [f"{name}t = Transpose<perm = [1, 0]>({first})", f"{name} = Transpose<perm = [1, 0]>({name}t)"]
        elif how == "Repeat":
            lines += [f"{name}m = ReduceMean<keepdims = 1>({first})", f"{name} = Expand({name}m, size)"]
        elif how == "Split":
            lines.append(f"{name}a, {name}b = Split<axis = 1>({first}, widths)")
            lines.append(f"{name} = Concat<axis = 1>({name}b, {name}a)")
        else:
            lines.append(f"{name}s = Tanh({first})\n{name} = {how}({name}s)")
        known.append(name)
    made = [name for name in known if name.startswith("n")]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    head = ", ".join(f"float[2,3] {name}" for name in outputs)
    return model(
        f"""g (float[2,3] x, float[2,3] t, float[2,3] c) => ({head})
        <float[2,3] g__l__weight = {{1,2,3,4,5,6}}, float[2,3] k = {{0,1,0,1,0,1}}, int64[2] size = {{2,3}},
         int64[2] widths = {{1,2}}> {{ {chr(10).join(lines)} }}"""
    )


@settings(max_examples=100, deadline=None)
@given(graphs(), st.integers(0, 2**32 - 1))
def test_step_and_parts_together_are_the_model(given, seed):
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal((2, 3), np.float32) for name in ("x", "t", "c")}
    hoisted = hoist(given, PARTS)
    expected, found = run(given, feeds), run_hoisted(hoisted, feeds)
    assert list(found) == list(expected)
    for name in expected:
        assert np.array_equal(expected[name], found[name])  # the same operations in the same order: no tolerance
    read = {value.name for value in hoisted.step.graph.inputs}
    assert read <= {"x", *(value.name for part in hoisted.parts.values() for value in part.graph.outputs)}


TARGETS = ["onnxruntime-fp32", "openvino-cpu-fp32"]


class Counting:
    """An engine that writes down what it is fed, and runs."""

    def __init__(self, engine, calls):
        self.engine, self.calls = engine, calls

    def run(self, feeds):
        self.calls.append(feeds)
        return self.engine.run(feeds)

    def rest(self):
        self.engine.rest()

    def close(self):
        self.engine.close()


class CountedInpainting(Inpainting):
    """The pipeline, with each engine's calls by component."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.calls = defaultdict(list)

    def engine(self, component, batch=1):
        return Counting(super().engine(component, batch), self.calls[component])


@pytest.fixture(params=TARGETS)
def pair(request, tiny_bundles, hoisted_bundles):
    """The plain and the hoisted bundle of a target."""
    return open_manifest(tiny_bundles[request.param]), open_manifest(hoisted_bundles[request.param])


def paint(inpainting, prompt="a reef", **painting):
    picture = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.ones((64, 64), bool)
    mask[16:-16, 16:-16] = False
    return inpainting.paint(picture, mask, prompt, Painting(**{"steps": 4, **painting}))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_hoisted_unet_paints_the_same_picture(pair, guidance):
    plain, hoisted = (paint(Inpainting(bundle), guidance=guidance, negative_prompt="red") for bundle in pair)
    # the operations are the same; engines fuse and order them differently on both sides of the cut, so float32
    # rounds differently, and a grey level turns here and there: a pixel in a hundred would still be 68 dB
    assert tensor_psnr_db(plain, hoisted) >= 60
    assert plain.std() > 5  # a flat picture would prove nothing


def test_the_parity_is_that_of_the_whole_unet(pair):
    _, hoisted = pair
    parities = {name: hoisted.manifest.components[name].parity_psnr_db for name in ("unet", *HOISTED_INPUTS)}
    assert len(set(parities.values())) == 1
    assert parities["unet"] >= 60


def test_the_weights_of_cross_attention_and_time_are_gone_from_the_step_and_those_of_self_attention_are_not(
    tiny_checkpoint,
    tmp_path,
):
    checkpoint = open_checkpoint(tiny_checkpoint)
    save_skeleton(trace(checkpoint, "unet", Shapes(((64, 64),))), tmp_path / "unet.onnx")
    weights = checkpoint.weights("unet")
    hoisted = hoist(load_skeleton(tmp_path / "unet.onnx", weights), HOISTED_INPUTS)

    def found(model):
        """The names of the checkpoint's matrices that are weights of the model, transposed or not."""
        arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
        held = {array.tobytes() for a in arrays if a.ndim == 2 for array in (a, a.T)}
        return {
            name for name, weight in weights.items() if len(weight.shape) == 2 and weight.float32().tobytes() in held
        }

    step, text, time = (found(model) for model in (hoisted.step, *hoisted.parts.values()))
    assert step.isdisjoint(text | time)
    assert text and all(".attn2.to_k." in name or ".attn2.to_v." in name for name in text)
    assert time and all("time_emb" in name for name in time)
    assert not [name for name in step if "time_emb" in name or ".attn2.to_k." in name or ".attn2.to_v." in name]
    assert {f".attn1.to_{x}." for x in "qkv"} <= {
        f".attn1.to_{x}." for n in step for x in "qkv" if f".attn1.to_{x}." in n
    }
    assert len([name for name in step if ".attn1.to_k." in name]) == len(text) // 2


def test_the_text_runs_once_for_each_prompt_and_the_time_once_for_each_timestep(pair):
    inpainting = CountedInpainting(pair[1])
    calls = inpainting.calls
    zoom = Zoom(pair[1])
    zoom.inpainting = inpainting
    keyframes = zoom.keyframes(np.full((64, 64, 3), 90, np.uint8), "a reef", 0.5, Painting(steps=3, scheduler="ddim"))
    for _ in range(4):
        next(keyframes)
    assert len(calls["unet"]) == 3 * 3 * 2  # keyframes, steps, with and without the prompt
    assert len(calls["unet_text"]) == 2  # the prompt and the negative one
    assert len(calls["unet_time"]) == len({float(feeds["timestep"][0]) for feeds in calls["unet_time"]}) == 3
    paint(inpainting, "a meadow", steps=3, scheduler="ddim")
    assert (len(calls["unet_text"]), len(calls["unet_time"])) == (3, 3)
    paint(inpainting, "a meadow", steps=2, scheduler="ddim")
    assert len(calls["unet_time"]) <= 5


def test_a_timestep_that_a_schedule_visits_twice_is_made_once(hoisted_bundles):
    inpainting = CountedInpainting(open_manifest(hoisted_bundles[TARGETS[0]]))
    paint(inpainting, scheduler="pndm", guidance=1)
    assert len(inpainting.calls["unet_time"]) < len(inpainting.calls["unet"])


def test_what_is_remembered_is_bounded(hoisted_bundles):
    inpainting = CountedInpainting(open_manifest(hoisted_bundles[TARGETS[0]]))
    for number in range(PROMPTS_KEPT + 1):
        inpainting.text_feeds(f"prompt {number}")
    assert len(inpainting.calls["unet_text"]) == PROMPTS_KEPT + 1
    inpainting.text_feeds(f"prompt {PROMPTS_KEPT}")
    assert len(inpainting.calls["unet_text"]) == PROMPTS_KEPT + 1
    inpainting.text_feeds("prompt 0")  # the oldest was forgotten
    assert len(inpainting.calls["unet_text"]) == PROMPTS_KEPT + 2
    for number in range(TIMESTEPS_KEPT + 1):
        inpainting.time_feeds(float(number))
    inpainting.time_feeds(0.0)
    assert len(inpainting.calls["unet_time"]) == TIMESTEPS_KEPT + 2


def test_the_parts_are_unloaded_while_the_step_runs(hoisted_bundles):
    inpainting = Inpainting(open_manifest(hoisted_bundles[TARGETS[0]]))
    paint(inpainting)
    assert {name for name, _, _ in inpainting._engines.names} == {"vae_encoder", "unet", "vae_decoder"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_measurement_of_hoisting_runs_and_says_what_it_measured(tiny_bundles, hoisted_bundles, target):
    result = measure_hoisting(tiny_bundles[target], hoisted_bundles[target], 3, 1, 1, 1)
    assert (result.plain.step.latency.run_count, len(result.plain.peak_rss_bytes)) == (3, 1)
    assert result.largest_difference_fraction < 1e-4  # float32, summed in another order
    parameters = [result.hoisted.step.parameters, *(part.parameters for part in result.parts.values())]
    assert result.hoisted.step.parameters < result.plain.step.parameters
    assert sum(parameters) == pytest.approx(result.plain.step.parameters, rel=0.001)  # small constants are shared
    assert msgspec.json.decode(msgspec.json.encode(result), type=HoistingResult) == result


def test_bundles_that_differ_in_more_than_hoisting_are_not_compared(tiny_bundles, hoisted_bundles):
    with pytest.raises(UserError, match="must be a plain bundle"):
        measure_hoisting(hoisted_bundles[TARGETS[0]], tiny_bundles[TARGETS[0]])
    with pytest.raises(UserError, match="differ in target"):
        measure_hoisting(tiny_bundles[TARGETS[0]], hoisted_bundles[TARGETS[1]])
