"""Masks of attention in numbers that codes can have: a mask of minus infinity leaves no step for anything else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .cast import initializer

MASKED = -100.0  # added to a score: e to this is less than the least number that float32 can add to 1
LEAST = -1e4  # what is below this is a mask


def finite_masks(model: ir.Model) -> ir.Model:
    """A copy of `model` whose constant masks are MASKED where they were a large negative number.

    Scores may span up to some 80. The test for rows of NaN, which all-masked rows would be, goes: there are none now.
    """
    model = model.clone()
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        masks = tensor is not None and tensor.dtype == ir.DataType.FLOAT and all(
            use.node.op_type == "Add" for use in value.uses()
        )  # fmt: skip
        if tensor is None or not masks or not value.uses() or len(tensor.shape) < 2:
            continue
        array = tensor.numpy()
        if array.min() < LEAST:
            finite = initializer(model, ir.tensor(np.maximum(array, np.float32(MASKED)), name=f"{name}.finite"))
            ir.convenience.replace_all_uses_with(value, finite)
            del model.graph.initializers[name]
    for node in list(model.graph):
        if node.op_type == "Where" and _tests_for_nan(node):
            tested, kept = node.inputs[0], node.inputs[2]
            assert tested is not None and kept is not None  # as _tests_for_nan has seen
            ir.convenience.replace_all_uses_with(node.outputs[0], kept)
            test = tested.producer()
            model.graph.remove(node, safe=True)
            if test is not None and not tested.uses():
                model.graph.remove(test, safe=True)
    _remove_unused(model)
    return model


def _tests_for_nan(node: ir.Node) -> bool:
    """Whether it takes a constant where its third input is NaN, and that input elsewhere."""
    tested = node.inputs[0].producer() if node.inputs[0] is not None else None
    return tested is not None and tested.op_type == "IsNaN" and tested.inputs[0] is node.inputs[2]


def _remove_unused(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
