"""A model cut into segments does what the whole does, with fewer weights in memory at a time."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from outzoom.export.segments import needed_later, segmented, split

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
    return ir.from_onnx_text(CHAIN)


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
    assert len(engine.steps) == 3
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
