"""Half-precision storage: weights are kept in 16 bits and cast back in the graph, so compute stays float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .int4 import FLOAT16_MAX
from .layers import MIN_ELEMENTS

PACKED = "packed"  # the metadata key of a tensor that is stored in a form of its own
STORED_AS = "stored as"  # the metadata key of a tensor that says in which type a checkpoint has it


def cast_weights(model: ir.Model) -> ir.Model:
    """A copy of `model` whose float32 weights are stored as float16, each behind a Cast to float32.

    Engines fold the cast away at load or keep the weight compressed, as they see fit. A weight beyond
    float16's range stays as it is. Tensors are converted one at a time, when the model is written.
    """
    model = model.clone()
    for name, value in list(model.graph.initializers.items()):
        weight = value.const_value
        if weight is None or weight.dtype != ir.DataType.FLOAT or weight.size < MIN_ELEMENTS:
            continue
        is_bias = sum(side > 1 for side in weight.shape.numpy()) < 2
        if PACKED in weight.metadata_props or is_bias:
            continue
        if weight.metadata_props.get(STORED_AS) != "F16" and not abs(weight.numpy()).max() <= FLOAT16_MAX:
            continue
        half, shape = f"{name}.float16", ir.Shape(weight.shape.numpy())
        lazy = ir.LazyTensor(partial(_halved, weight, half), ir.DataType.FLOAT16, shape=shape, name=half)
        cast_weight(model, value, lazy)
    return model


def cast_weight(model: ir.Model, value: ir.Value, weight: ir.TensorProtocol) -> None:
    """Let what uses `value` use `weight`, of float16 or float32, as float32."""
    stored = initializer(model, weight)
    stand_in(model, value, ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}))


def initializer(model: ir.Model, tensor: ir.TensorProtocol) -> ir.Value:
    """A tensor as an initializer of the graph, under its own name."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def derived(
    model: ir.Model, weight: ir.TensorProtocol, name: str, change: Callable[[NDArray[Any]], NDArray[Any]],
    shape: tuple[int, ...],
) -> ir.Value:  # fmt: skip
    """An initializer of that name and shape that is made of a weight by `change`, whenever it is read."""
    if name not in model.graph.initializers:
        lazy = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(change(weight.numpy())), name=name), weight.dtype,
            shape=ir.Shape(shape), name=name, metadata_props=dict(weight.metadata_props),
        )  # fmt: skip
        initializer(model, lazy)
    return model.graph.initializers[name]


def replace_tensor(
    value: ir.Value, read: Callable[[], NDArray[np.float32]], properties: Mapping[str, str] | None = None
) -> None:
    """Give an initializer, in the shape that it has by now, what `read` makes whenever somebody asks for it."""
    name = str(value.name)
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(read(), name=name), ir.DataType.FLOAT,
        shape=ir.Shape(value.shape or ()), name=name, metadata_props=dict(properties or {}),
    )  # fmt: skip


def insert_after(model: ir.Model, value: ir.Value, *nodes: ir.Node) -> None:
    """Put nodes right after the one that makes a tensor, or before all others if it is given."""
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.insert_after(producer, nodes)


def stand_in(model: ir.Model, value: ir.Value, node: ir.Node) -> None:
    """Let what uses `value`, an initializer, use the float32 output of `node`, which is made of other initializers."""
    result = node.outputs[0]
    result.name, result.shape, result.type = f"{value.name}.cast", value.shape, ir.TensorType(ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(value, result)
    model.graph.insert_before(model.graph[0], node)
    del model.graph.initializers[str(value.name)]


def _halved(weight: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    return ir.tensor(weight.numpy().astype("float16"), name=name)
