"""A model cut into pieces that run one after another, so that an engine need never hold all of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import onnx_ir as ir

from ..runtime.backends import Engine, Loading
from ..runtime.backends.onnxruntime import OnnxRuntime
from ..runtime.files import link_or_copy
from ..runtime.segments import Segment, SegmentedEngine

SEGMENT_BYTES = 512 * 2**20


def open_mapped(file: Path) -> Engine:
    """Open an ONNX model in little memory."""
    return OnnxRuntime().load(file, Loading(frugal=True))


def in_turn(segments: Sequence[Segment]) -> SegmentedEngine:
    """An engine of ONNX models, each open, and its weights in memory, only while it runs."""
    return SegmentedEngine(segments, lambda segment: closing(open_mapped(Path(segment.engine))))


def segmented(onnx: Path, folder: Path) -> SegmentedEngine:
    """An ONNX model and its external weights as segments that run in turn; their models are written into `folder`."""
    folder.mkdir()
    for weights in onnx.parent.glob(f"{onnx.name}.*"):
        link_or_copy(weights, folder / weights.name)
    model = ir.load(onnx)

    def save(segment: ir.Model, number: int) -> Path:
        file = folder / f"{number}.onnx"
        ir.save(segment, file)
        return file

    return in_turn(described(model, split(model), save))


def described(model: ir.Model, segments: list[ir.Model], save: Callable[[ir.Model, int], Path]) -> list[Segment]:
    """The segments of a model, each in the file that `save` writes it to."""
    outputs = {str(value.name) for value in model.graph.outputs}
    found = []
    for number, (segment, needed) in enumerate(zip(segments, needed_later(segments), strict=True)):
        inputs = tuple(str(value.name) for value in segment.graph.inputs)
        found.append(Segment(str(save(segment, number)), inputs, tuple(sorted(needed | outputs))))
    return found


def needed_later(segments: list[ir.Model]) -> list[set[str]]:
    """For each segment the inputs of those after it."""
    needed: set[str] = set()
    found = [needed]
    for segment in reversed(segments[1:]):
        needed = needed | {str(value.name) for value in segment.graph.inputs}
        found.append(needed)
    return found[::-1]


def split(
    model: ir.Model, most_bytes: int = SEGMENT_BYTES, more_bytes: Callable[[ir.Node], int] = lambda node: 0
) -> list[ir.Model]:
    """Models that do in turn what `model` does, each with at most about `most_bytes` of weights and what else it takes.

    `more_bytes` says what a node takes beside its weights. Each takes inputs of the model and outputs of earlier ones;
    what is made of weights alone, such as a cast, goes with what uses it, as does rounding. Cuts are made where the
    fewest tensors cross. A layer is never divided, so a model that is small enough, or has one layer, comes back as a
    list of one.
    """
    constant = _constant_nodes(model.graph)
    moving = constant | _rounding_nodes(model.graph, constant)
    nodes = [node for node in model.graph if node not in moving]
    users: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        for value in _sources(node, moving):
            users.setdefault(value, []).append(node)
    cuts = _cuts(nodes, users, constant, most_bytes, more_bytes)
    segments = []
    for begin, end in zip([0, *cuts], [*cuts, len(nodes)], strict=True):
        inside = set(nodes[begin:end])
        made = dict.fromkeys(value for node in nodes[begin:end] for value in node.outputs)
        outputs = [
            value for value in made
            if value.is_graph_output() or any(user not in inside for user in users.get(value, ()))
        ]  # fmt: skip
        taken = dict.fromkeys(value for node in nodes[begin:end] for value in _sources(node, moving))
        inputs = [value for value in taken if value not in made]
        graph = ir.convenience.extract(model.graph, inputs, outputs)
        segments.append(ir.Model(graph, ir_version=model.ir_version))
    return segments


def split_evenly(model: ir.Model, count: int) -> list[ir.Model]:
    """About `count` models that do in turn what `model` does, with about as many weights each: see `split`."""
    weights = (value.const_value for value in model.graph.initializers.values())
    total_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    return split(model, -(-total_bytes // count))


def _constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that make the same in every run: of weights and of constants alone."""
    constant: set[ir.Node] = set()
    for node in graph:
        if all(value is None or value.is_initializer() or value.producer() in constant for value in node.inputs):
            constant.add(node)
    return constant


def _rounding_nodes(graph: ir.Graph, constant: set[ir.Node]) -> set[ir.Node]:
    """Those that only round activations, to ranges that are the same in every run.

    Engines compute in integers what is rounded in the same graph, so they go with what uses them, into several segments
    if need be.
    """
    return {
        node for node in graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.outputs[0].is_graph_output()
        and all(value is None or value.is_initializer() or value.producer() in constant for value in node.inputs[1:])
    }  # fmt: skip


def _sources(node: ir.Node, moving: set[ir.Node]) -> list[ir.Value]:
    """The values that the node takes, itself or through nodes that go with it; no weights."""
    found: list[ir.Value] = []
    for value in node.inputs:
        if value is None or value.is_initializer():
            continue
        producer = value.producer()
        if producer is not None and producer in moving:
            found += _sources(producer, moving)
        else:
            found.append(value)
    return found


def _weights(node: ir.Node, constant: set[ir.Node]) -> set[ir.Value]:
    """The initializers that a node uses, as they are or through constant nodes."""
    found: set[ir.Value] = set()
    for value in node.inputs:
        if value is not None and value.is_initializer():
            found.add(value)
        elif value is not None and (producer := value.producer()) in constant and producer is not None:
            found |= _weights(producer, constant)
    return found


def _cuts(
    nodes: list[ir.Node],
    users: Mapping[ir.Value, Sequence[ir.Node]],
    constant: set[ir.Node],
    most_bytes: int,
    more_bytes: Callable[[ir.Node], int],
) -> list[int]:
    """The indices of the nodes that begin a new segment."""
    crossing = _crossing(nodes, users)
    sizes: list[int] = []
    seen: set[ir.Value] = set()
    for node in nodes:
        own = _weights(node, constant) - seen
        seen |= own
        weights_bytes = sum(value.const_value.nbytes for value in own if value.const_value is not None)
        sizes.append(weights_bytes + more_bytes(node))
    cuts: list[int] = []
    begin, held_bytes = 0, 0
    for index, size_bytes in enumerate(sizes):
        if held_bytes and held_bytes + size_bytes > most_bytes:
            candidates = range(begin + 1, index + 1)
            best = min(candidates, key=lambda i: (_underfull(sizes, begin, i, most_bytes), crossing[i], -i))
            cuts.append(best)
            begin, held_bytes = best, sum(sizes[best:index])
        held_bytes += size_bytes
    return cuts


def _underfull(sizes: list[int], begin: int, end: int, most_bytes: int) -> bool:
    """Whether a segment would be less than half full: such cuts come last."""
    return sum(sizes[begin:end]) < most_bytes / 2


def _crossing(nodes: list[ir.Node], users: Mapping[ir.Value, Sequence[ir.Node]]) -> list[int]:
    """For a cut before each node: how many values made before it are used after it."""
    position = {node: index for index, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 2)
    for node in nodes:
        for value in node.outputs:
            last = max((position[user] for user in users.get(value, ())), default=position[node])
            change[position[node] + 1] += 1
            change[(len(nodes) if value.is_graph_output() else last) + 1] -= 1
    crossing, live = [], 0
    for index in range(len(nodes)):
        live += change[index]
        crossing.append(live)
    return crossing
