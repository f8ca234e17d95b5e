"""A model cut into segments does what the whole does, with fewer weights in memory at a time."""

import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from outzoom.benchmarks.process import measure_bundle
from outzoom.benchmarks.settings import BenchSettings
from outzoom.export.parity import tensor_psnr_db
from outzoom.export.segments import described, needed_later, open_mapped, segmented, split, split_evenly
from outzoom.runtime import BundleError, Painting, open_bundle, open_manifest
from outzoom.runtime.engines import EnginePool, segments_of
from outzoom.runtime.files import sha256_of
from outzoom.runtime.segments import SegmentedEngine

# y = relu(x + a), z = y + b, out = z + y + c: 12 bytes of weights in each addition
CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
chain (float[3] x) => (float[3] out)
<float[3] a = {1, 2, 3}, float[3] b = {10, 20, 30}, float[3] c = {100, 200, 300}>
{
    xa = Add(x, a)
    y = Relu(xa)
    z = Add(y, b)
    zy = Add(z, y)
    out = Add(zy, c)
}
"""


@pytest.fixture
def chain():
    model = ir.from_onnx_text(CHAIN)
    for value in (node.outputs[0] for node in model.graph):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3])
    return model


def ops(segment):
    return [node.op_type for node in segment.graph]


def names(values):
    return [value.name for value in values]


def test_a_small_model_is_one_segment(chain):
    (segment,) = split(chain, 100)
    assert ops(segment) == ["Add", "Relu", "Add", "Add", "Add"]
    assert (names(segment.graph.inputs), names(segment.graph.outputs)) == (["x"], ["out"])


def test_segments_hold_no_more_than_asked_and_pass_on_what_is_used_later(chain):
    first, second, third = split(chain, 12)
    assert (ops(first), ops(second), ops(third)) == (["Add", "Relu"], ["Add", "Add"], ["Add"])
    assert (names(first.graph.inputs), names(first.graph.outputs)) == (["x"], ["y"])
    assert (names(second.graph.inputs), names(second.graph.outputs)) == (["y"], ["zy"])
    assert (names(third.graph.inputs), names(third.graph.outputs)) == (["zy"], ["out"])


def test_what_a_node_takes_beside_its_weights_counts(chain):
    segments = split(chain, 24, lambda node: 12 if node.op_type == "Relu" else 0)
    assert [ops(segment) for segment in segments] == [["Add", "Relu"], ["Add", "Add", "Add"]]


def test_only_inputs_of_later_segments_are_needed(chain):
    assert needed_later(split(chain, 12)) == [{"y", "zy"}, {"zy"}, set()]
    assert needed_later(split(chain)) == [set()]


def test_an_engine_of_segments_makes_what_the_whole_makes(chain, tmp_path, monkeypatch):
    monkeypatch.setattr("outzoom.export.segments.split", lambda model, whole=split: whole(model, 12))
    chain.graph.outputs.append(next(node.outputs[0] for node in chain.graph if node.outputs[0].name == "y"))
    for value in (node.outputs[0] for node in chain.graph):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3])
    ir.save(chain, tmp_path / "model.onnx", external_data="model.onnx.data")
    engine = segmented(tmp_path / "model.onnx", tmp_path / "segments")
    assert len(engine.segments) == 3
    made = engine.run({"x": np.array([-5, 0, 5], np.float32)})
    assert {name: value.tolist() for name, value in made.items()} == {
        "y": [0, 2, 8],
        "out": [0 + 10 + 0 + 100, 2 + 20 + 2 + 200, 8 + 30 + 8 + 300],
    }


def test_the_model_is_left_as_it_was(chain):
    before = ir.to_onnx_text(chain)
    split(chain, 12)
    assert ir.to_onnx_text(chain) == before


def test_casts_of_weights_go_with_what_uses_them():
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        halves (float[3] x) => (float[3] out)
        <float16[3] a = {1, 2, 3}, float16[3] b = {10, 20, 30}>
        {
            wide_a = Cast <to = 1> (a)
            wide_b = Cast <to = 1> (b)
            xa = Add(x, wide_a)
            out = Add(xa, wide_b)
        }
    """)
    first, second = split(model, 6)
    assert (ops(first), ops(second)) == (["Cast", "Add"], ["Cast", "Add"])
    assert (names(first.graph.inputs), names(second.graph.inputs)) == (["x"], ["xa"])
    assert [list(segment.graph.initializers) for segment in (first, second)] == [["a"], ["b"]]


def run(model, feeds):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True))


@pytest.mark.parametrize("most_bytes", [30_000, 200_000, 10**9])
def test_the_segments_of_a_unet_make_in_turn_what_the_whole_makes(tiny_bundles, most_bytes):
    file = tiny_bundles["onnxruntime-fp32"] / "unet" / "model.onnx"
    model = ir.load(file)
    rng = np.random.default_rng(1)
    feeds = {value.name: rng.standard_normal(value.shape.numpy(), np.float32) for value in model.graph.inputs}
    expected = run(ir.from_proto(onnx.load(file)), feeds)["out_sample"]
    segments = split(model, most_bytes)
    for segment in segments:
        weights = [value.const_value for value in segment.graph.initializers.values()]
        largest = max((weight.nbytes for weight in weights), default=0)
        assert sum(weight.nbytes for weight in weights) <= max(most_bytes, 2 * largest)
        ir.external_data.load_to_model(segment)
        feeds |= run(segment, feeds)
    assert (len(segments) > 3) == (most_bytes < 10**6)
    # whole or in parts the same operations run; fused otherwise at the seams, so not to the last bit
    assert np.allclose(feeds["out_sample"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


ROUNDED = """
<ir_version: 10, opset_import: ["" : 21]>
rounded (float[3] x) => (float[3] out)
<float[3] a = {1, 2, 3}, float[3] b = {10, 20, 30}, float step = {0.5}, uint8 zero = {128}>
{
    xa = Add(x, a)
    codes = QuantizeLinear(xa, step, zero)
    near = DequantizeLinear(codes, step, zero)
    y = Mul(near, b)
    out = Add(y, near)
}
"""


def test_rounding_goes_with_what_is_computed_of_it():
    first, second = split(ir.from_onnx_text(ROUNDED), 12)
    assert ops(first) == ["Add"]
    assert ops(second) == ["QuantizeLinear", "DequantizeLinear", "Mul", "Add"]
    assert names(second.graph.inputs) == ["xa"]


def test_rounding_that_several_segments_need_is_in_each():
    model = ir.from_onnx_text(ROUNDED.replace("out = Add(y, near)", "z = Mul(near, a)\n out = Add(y, z)"))
    segments = split(model, 12)
    assert [ops(one)[:2] for one in segments[1:]] == [["QuantizeLinear", "DequantizeLinear"]] * (len(segments) - 1)


def test_an_even_split_has_about_as_many_segments_as_asked_for(chain):
    assert [len(split_evenly(chain, count)) for count in (1, 2, 3)] == [1, 3, 3]


@pytest.fixture(scope="module")
def segmented_bundles(tiny_checkpoint, tmp_path_factory, build_bundles):
    out = tmp_path_factory.mktemp("segmented-bundles")
    targets = ["onnxruntime", "openvino-cpu"]
    return build_bundles(tiny_checkpoint, out, targets, ["kmeans4"], unet_segments=3, shallow_skips=1)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino-cpu"])
def test_a_unet_in_segments_paints_what_the_whole_one_does(
    segmented_bundles, tiny_checkpoint, tmp_path, build_bundles, target
):
    whole = build_bundles(tiny_checkpoint, tmp_path, [target], ["kmeans4"])[f"{target}-kmeans4"]
    bundle = segmented_bundles[f"{target}-kmeans4"]
    assert len(segments_of(open_manifest(bundle), "unet")) >= 3
    made = [keyframe(path, limit) for path, limit in ((whole, None), (bundle, None), (bundle, 1))]
    assert psnr(made[1], made[0]) > 36  # in bf16, what passes between segments is rounded otherwise: 41.7 dB were seen
    assert psnr(made[2], made[1]) > 36


def test_a_bundle_in_segments_is_measured_like_others(segmented_bundles, tmp_path):
    settings = BenchSettings(seconds=2, steps=1, runs=3, warm_ups=0)
    measured = measure_bundle(segmented_bundles["onnxruntime-kmeans4"], settings, tmp_path)
    assert measured.components["unet"].latency.run_count == 3
    assert measured.components["unet"].executed is None and measured.components["unet_shallow"].executed is not None


def keyframe(path, limit_bytes):
    with open_bundle(path, memory_limit_bytes=limit_bytes) as zoom:
        picture = np.random.default_rng(0).integers(0, 256, (*zoom.size[::-1], 3), np.uint8)
        keyframes = zoom.keyframes(picture, "a reef", 0.5, Painting(steps=2, whole_every=1))
        next(keyframes)
        return next(keyframes)


def psnr(made, reference):
    return tensor_psnr_db(reference.astype(np.float32), made.astype(np.float32))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-2], "is damaged"),
        (lambda text: "[]", "lists 0 segments"),
        (
            lambda text: text.replace("0/model.onnx", "../../elsewhere.onnx"),
            "lists no file 'unet/../../elsewhere.onnx'",
        ),
    ],
)
def test_a_list_of_segments_that_is_not_what_was_built_is_refused(segmented_bundles, tmp_path, damage, words):
    bundle = shutil.copytree(segmented_bundles["onnxruntime-kmeans4"], tmp_path / "bundle")
    file = bundle / "unet" / "segments.json"
    file.write_text(damage(file.read_text()))
    manifest = msgspec.json.decode((bundle / "bundle.json").read_bytes())
    manifest["files"]["unet/segments.json"] = {"size_bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleError) as caught:
        keyframe(bundle, None)
    assert words in str(caught.value)


class Opened:
    def __init__(self, pool_log, key):
        self.log, self.key = pool_log, key

    def run(self, feeds):
        return {}

    def rest(self):
        self.log.append(("rest", self.key[0] + self.key[2]))

    def close(self):
        self.log.append(("close", self.key[0] + self.key[2]))


@pytest.fixture
def memory(monkeypatch):
    """What the pool believes to be in use: 100 bytes for each open engine."""
    log = []
    monkeypatch.setattr(
        "outzoom.runtime.engines.rss_bytes", lambda: 100 * sum(1 if k == "open" else -1 for k, _ in log)
    )

    def pool(limit):
        def open_engine(key):
            log.append(("open", key[0] + key[2]))
            return Opened(log, key)

        return EnginePool(open_engine, limit)

    return pool, log


def test_without_a_limit_engines_stay_open(memory):
    pool, log = memory[0](None), memory[1]
    for _ in range(2):
        for name in "abc":
            pool.get((name, 1, ""))
    assert log == [("open", "a"), ("open", "b"), ("open", "c")]


def test_an_engine_that_never_ran_has_the_memory_to_itself(memory):
    pool, log = memory[0](1000), memory[1]
    pool.get(("a", 1, ""))
    pool.get(("b", 1, ""))
    pool.get(("a", 1, ""))  # now it is known what they take
    assert log == [("open", "a"), ("close", "a"), ("open", "b"), ("open", "a")]


def known(pool, log, *names):
    """All of these have run once, the last is open."""
    for name in names:
        pool.get((name[0], 1, name[1:]))
    log[:] = [("open", names[-1])]


def test_other_components_are_closed_first_the_oldest_of_them_before(memory):
    pool, log = memory[0](300), memory[1]
    known(pool, log, "b", "u0", "u1", "a")
    for name in ("b", "a", "u0", "u1"):
        pool.get((name[0], 1, name[1:]))
    assert log[1:] == [("open", "b"), ("open", "u0"), ("close", "b"), ("open", "u1")]


def test_of_segments_in_a_circle_as_many_stay_as_fit(memory):
    pool, log = memory[0](300), memory[1]
    known(pool, log, "u0", "u1", "u2", "u3")
    for _ in range(3):
        for segment in "0123":
            pool.get(("u", 1, segment))
    opened = [name for what, name in log if what == "open"]
    assert opened[:3] == ["u3", "u0", "u1"]
    assert len(opened) == 7  # of twelve: three of four stay from one turn to the next


def test_where_the_system_does_not_say_what_is_in_use_one_engine_is_open_at_a_time(memory, monkeypatch):
    pool, log = memory[0](1000), memory[1]
    monkeypatch.setattr("outzoom.runtime.engines.rss_bytes", lambda: None)
    for name in "aba":
        pool.get((name, 1, ""))
    assert [what for what, _ in log] == ["open", "close", "open", "close", "open"]


def test_several_feeds_go_through_a_segment_before_the_next_is_opened(chain, tmp_path):
    opened = []

    def in_file(segment, number):
        file = tmp_path / f"{number}.onnx"
        ir.save(segment, file)
        return file

    segments = described(chain, split(chain, 12), in_file)

    def opens(segment):
        opened.append(segment.engine)
        return closing(open_mapped(Path(segment.engine)))

    engine = SegmentedEngine(segments, opens)
    feeds = [{"x": np.full(3, value, np.float32)} for value in (0, 1)]
    made = engine.run_each(feeds)
    assert len(opened) == 3
    assert [one["out"].tolist() for one in made] == [engine.run(one)["out"].tolist() for one in feeds]
