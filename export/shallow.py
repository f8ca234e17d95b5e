"""A shallow UNet beside the whole one: it takes the deep features of an earlier step in place of making them.

From step to step a UNet's deep features change little. The shallow UNet has the first layers of the way down and the
last of the way up, as far as they meet in the last skip connections; the whole one gives its deep features away.

Source: Ma et al., "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..runtime.bundle import DEEP_FEATURES
from ..runtime.errors import OutzoomError
from .hoist import extract_model

ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Split:
    """`whole` makes DEEP_FEATURES beside its outputs; `shallow` takes them beside those inputs that it needs."""

    whole: ir.Model
    shallow: ir.Model


def split_shallow(model: ir.Model, skips: int) -> Split:
    """Cut a UNet where its way up has `skips` skip connections before it; weights are handed over, not read.

    Skip connections are joined by a Concat of two feature maps along their channels. The deep features are what comes
    from below into the first of the last `skips` of them, before it is rounded. Raises OutzoomError when the UNet has
    no more skip connections than that, and when the features' shape is not known.
    """
    joins = [node for node in model.graph if _joins_features(node)]
    if not 0 < skips < len(joins):
        raise OutzoomError(f"a UNet of {len(joins)} skip connections has no shallow one with {skips} of them")
    deep = _unrounded(joins[-skips].inputs[0])
    if deep.shape is None or any(side.value is None for side in deep.shape if isinstance(side, ir.SymbolicDim)):
        raise OutzoomError(f"the shape of the UNet's deep features, '{deep.name}', is not known")
    graph = model.graph
    whole = extract_model(model, graph.name or "whole", graph.inputs, [*graph.outputs, deep])
    whole.graph.outputs[-1].name = DEEP_FEATURES
    needed = _inputs_between(deep, graph.outputs)
    shallow = extract_model(model, f"{graph.name or 'whole'}_shallow", [*needed, deep], graph.outputs)
    shallow.graph.inputs[-1].name = DEEP_FEATURES
    return Split(whole, shallow)


def _joins_features(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    axis = node.attributes.get_int("axis", 0)
    return node.op_type == "Concat" and len(node.inputs) == 2 and shape is not None and shape.rank() == 4 and axis == 1


def _unrounded(value: ir.Value | None) -> ir.Value:
    assert value is not None
    while (producer := value.producer()) is not None and producer.op_type in ROUNDING:
        value = producer.inputs[0]
        assert value is not None
    return value


def _inputs_between(stop: ir.Value, outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """The graph's inputs that the outputs depend on otherwise than through `stop`, in their order."""
    reached: set[ir.Value] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value not in reached and value is not stop:
            reached.add(value)
            producer = value.producer()
            waiting += [read for read in producer.inputs if read is not None] if producer is not None else []
    graph = outputs[0].graph
    assert graph is not None
    return [value for value in graph.inputs if value in reached]
