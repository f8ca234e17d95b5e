"""Hoisting: what a loop does not change leaves the model that it runs, into models that run once.

In the zoom the prompt stays, and the timesteps are known when the schedule is: the keys and values of the UNet's
cross-attention and the projections of its time embedding need not be made again in every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ..runtime.errors import OutzoomError

# Operators that only move or repeat the elements of their first input.
MOVES = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Hoisted:
    """A model in parts: the outputs of `parts` are the inputs of `step` of the same names, after its own."""

    step: ir.Model
    parts: dict[str, ir.Model]


def hoist(model: ir.Model, parts: Mapping[str, str]) -> Hoisted:
    """Split off each part that `parts` names: all that depends on its graph input and on no other.

    `step` has the other inputs, and the model's outputs. What depends on no input (constants, weights, what is
    made of them alone) goes with what uses it, on both sides if need be. A part from which `step` needs nothing
    is left out. Weights are handed over, not read; `model` is not changed. The tensors in between are called
    after the layers whose weights made them, such as "mid_block.resnets.0.time_emb_proj".

    The cut is as late as possible, so that the step does least; only where nothing but moves and repetitions
    leads to it, it is where the tensor is smallest. Raises OutzoomError when a shape there is not known, and for
    an input that the model lacks.
    """
    if not all(_is_known(value) for node in model.graph for value in node.outputs):
        model = ShapeInferencePass()(model.clone()).model
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    if missing := set(parts.values()).difference(inputs):
        raise OutzoomError(f"nothing can be hoisted for {sorted(missing)}: the inputs are {list(inputs)}")
    sources = {inputs[name]: part for part, name in parts.items()}
    part_of = _parts_of_values(graph, sources)
    cuts = _cuts(graph, part_of)
    names = _names(graph, part_of, cuts)
    kept = [value for value in graph.inputs if value not in part_of]
    step = extract_model(model, graph.name or "step", [*kept, *cuts], graph.outputs)
    _rename(step.graph.inputs[len(kept) :], names)
    made = {}
    for source, part in sources.items():
        if own := {value: name for value, name in zip(cuts, names, strict=True) if part_of[value] == part}:
            made[part] = extract_model(model, part, [source], list(own))
            _separate(made[part].graph)
            _rename(made[part].graph.outputs, own.values())
    return Hoisted(step, made)


def _parts_of_values(graph: ir.Graph, sources: Mapping[ir.Value, str]) -> dict[ir.Value, str]:
    """The part of every value that depends on one source and on no other input, if the step need not make it."""
    depends = {value: frozenset([value]) for value in graph.inputs}
    for node in graph:
        found = frozenset[ir.Value]().union(*(depends.get(value, ()) for value in _read(node)))
        depends.update(dict.fromkeys(node.outputs, found))
    results = {result for output in graph.outputs for result in (output, *_siblings(output))}
    return {
        value: sources[source]
        for value, found in depends.items()
        if len(found) == 1 and value not in results
        for source in found
        if source in sources
    }


def _siblings(value: ir.Value) -> Sequence[ir.Value]:
    producer = value.producer()
    return producer.outputs if producer is not None else ()


def _read(node: ir.Node) -> list[ir.Value]:
    """The values of the node's own graph that it reads, those that its subgraphs capture too."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        for graph in _subgraphs(attribute):
            inner = [value for nested in ir.traversal.RecursiveGraphIterator(graph) for value in nested.inputs]
            values += [value for value in (*inner, *graph.outputs) if value is not None and value.graph is node.graph]
    return values


def _subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _cuts(graph: ir.Graph, part_of: Mapping[ir.Value, str]) -> list[ir.Value]:
    """The values that cross from a part into the step, in the order of their first use."""
    cuts: dict[ir.Value, None] = {}
    for node in graph:
        if all(value in part_of for value in node.outputs):
            continue  # leaves the step
        for value in _read(node):
            if value in part_of:
                cuts[_smallest(value, part_of)] = None
    for value in cuts:
        if not _is_known(value):
            raise OutzoomError(
                f"'{value.name}' can't leave the step: its shape is {value.shape}",
                hint="export with static shapes",
            )
    return list(cuts)


def _smallest(value: ir.Value, part_of: Mapping[ir.Value, str]) -> ir.Value:
    """The smallest of the values that are moved or repeated into this one; of equal ones the last."""
    smallest = value
    while (node := value.producer()) is not None and node.op_type in MOVES and node.domain == "":
        moved, *settings = node.inputs
        if moved is None or moved not in part_of or any(setting in part_of for setting in settings):
            break
        value = moved
        if _elements(value) < _elements(smallest):
            smallest = value
    return smallest


def _is_known(value: ir.Value) -> bool:
    return value.dtype is not None and value.shape is not None and value.shape.is_static()


def _elements(value: ir.Value) -> float:
    return math.prod(value.shape.numpy()) if value.shape is not None and value.shape.is_static() else math.inf


def _names(graph: ir.Graph, part_of: Mapping[ir.Value, str], cuts: Iterable[ir.Value]) -> list[str]:
    """A name for each cut that no other value of the model has: its layer's, or its part's and a number."""
    taken = set(ir.convenience.create_value_mapping(graph))
    names = []
    for value in cuts:
        layer = _layer(graph, part_of, value)
        numbered = (f"{layer or part_of[value]}.{number}" for number in count())
        name = next(name for name in chain([layer] if layer else [], numbered) if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def _layer(graph: ir.Graph, part_of: Mapping[ir.Value, str], value: ir.Value) -> str:
    """The layer whose weight went last into a value of a part; empty when it is not to be told."""
    queue = [value]
    for current in queue:  # breadth first; it grows meanwhile
        node = current.producer()
        for read in node.inputs if node is not None else ():
            if read is not None and read in part_of:
                queue.append(read)
            elif read is not None and read.name and ".weight" in read.name:
                return read.name.partition(".weight")[0].removeprefix(f"{graph.name}.")
    return ""


def extract_model(model: ir.Model, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    """What makes the outputs of the inputs, as a model of its own."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    graph.name = name
    weights = [graph.initializers.pop(name) for name in model.graph.initializers if name in graph.initializers]
    for weight in weights:  # they come in no order
        graph.register_initializer(weight)
    return ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        functions=[function.clone() for function in model.functions.values()],
    )


def _separate(graph: ir.Graph) -> None:
    """Give an output that is an input as well a value of its own."""
    for index, value in enumerate(graph.outputs):
        if value in graph.inputs:
            node = ir.node("Identity", [value])
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type


def _rename(values: Iterable[ir.Value], names: Iterable[str]) -> None:
    for value, name in zip(values, names, strict=True):
        value.name = name
