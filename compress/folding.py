"""Factors of the channels between what makes a tensor and the linear layers that it flows into.

x W^T = (x / s) (W * s)^T for a factor s of each channel: what makes x is divided by it, the layers' columns are
multiplied by it, and no node is added. That takes a maker that is linear in each channel: a normalization's scale and
bias, or a layer's output channels, seen through what keeps channels apart. Attention's output is divided through its
values' layer, a gated product through the half that no other function sees.

Source: Xiao et al. 2022, "SmoothQuant" (arXiv 2211.10438), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .cast import replace_tensor
from .layers import Layer, find_layers


@dataclass(frozen=True)
class Part:
    """Entries of an initializer that go with a tensor's channels: along `axis`, one after another from `start` on."""

    value: ir.Value
    axis: int
    start: int = 0


@dataclass(frozen=True)
class SharedInput:
    """A tensor and the linear layers whose columns are its channels, which are its last axis.

    `makers` are what has to be divided for the tensor to be divided. If that can't be, there are none, and `obstacle`
    is the reason.
    """

    value: ir.Value
    layers: tuple[Layer, ...]
    makers: tuple[Part, ...] = ()
    obstacle: str = ""


def shared_inputs(model: ir.Model) -> list[SharedInput]:
    """What flows into linear layers, in the graph's order."""
    found: dict[ir.Value, list[Layer]] = {}
    for layer in find_layers(model):
        source = layer.node.inputs[0]
        if layer.op_type in ("MatMul", "Gemm") and source is not None:
            found.setdefault(source, []).append(layer)
    return [_shared(source, tuple(layers)) for source, layers in found.items()]


def fold(shared: SharedInput, factors: NDArray[np.float32]) -> None:
    """Divide a tensor by `factors`, (channels,), in what makes it, and multiply the columns of its layers by them.

    The tensors are computed when they are read. Raises ValueError for a tensor that has an obstacle.
    """
    if shared.obstacle:
        raise ValueError(f"'{shared.value.name}' can't be divided: {shared.obstacle}")
    for part in shared.makers:
        _multiply(part, np.float32(1) / factors)
    for layer in shared.layers:
        _multiply(Part(layer.value, layer.permutation.index(1)), factors)


def _multiply(part: Part, factors: NDArray[np.float32]) -> None:
    tensor = part.value.const_value
    assert tensor is not None  # an initializer has one
    replace_tensor(part.value, partial(_product, tensor, part.axis, part.start, factors))


def _product(tensor: ir.TensorProtocol, axis: int, start: int, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    array = np.array(tensor.numpy(), np.float32)
    channels = np.moveaxis(array, axis, -1)[..., start : start + len(factors)]
    channels *= factors
    return array


def _shared(source: ir.Value, layers: tuple[Layer, ...]) -> SharedInput:
    try:
        _check_uses(source, layers)
        last = len(source.shape or ()) - 1
        makers = _makers(_Place(source, (last,), 0, layers[0].columns))
    except _ObstacleError as obstacle:
        return SharedInput(source, layers, obstacle=str(obstacle))
    return SharedInput(source, layers, makers)


def _check_uses(source: ir.Value, layers: tuple[Layer, ...]) -> None:
    """Refuse a tensor that others than the layers use, and layers that are used with another tensor."""
    nodes = {use.node for layer in layers for use in layer.value.uses()}
    others = [use.node.op_type for use in source.uses() if use.node not in nodes]
    if others or source.is_graph_output():
        raise _ObstacleError(f"its input is used by {others[0] if others else 'whoever runs the graph'}, too")
    if any(node.inputs[0] is not source for node in nodes):
        raise _ObstacleError("its weight is used with other inputs, too")


class _ObstacleError(Exception):
    """Why a tensor can't be divided."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor has the channels: `width` in all over `axes`, the last counts fastest; ours from `start` on."""

    value: ir.Value
    axes: tuple[int, ...]
    start: int
    width: int

    @property
    def rank(self) -> int:
        return len(self.value.shape or ())


def _makers(place: _Place) -> tuple[Part, ...]:
    """The parts of initializers that a tensor's channels are proportional to."""
    node = place.value.producer()
    if node is None:
        raise _ObstacleError("its input comes from outside of the graph")
    if node.op_type in ("LayerNormalization", "GroupNormalization"):
        return _parts(place, node, [(1, -1), (2, -1)], 1 if node.op_type[0] == "G" else -1)
    if node.op_type == "Conv":
        return _parts(place, node, [(1, 0), (2, 0)], 1)
    if node.op_type == "Gemm":
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        return _parts(place, node, [(1, 0 if transposed else 1), (2, -1)], -1)
    if node.op_type == "MatMul" and _is_weight(node.inputs[1]):
        return _parts(place, node, [(1, -1)], -1)
    if node.op_type == "Add":
        return _makers_of_biased(place, node)
    if node.op_type == "Mul":
        return _makers_of_either(place, node)
    step = {"Transpose": _transposed, "Reshape": _reshaped, "Split": _split, "MatMul": _mixed}.get(node.op_type)
    if step is None:
        raise _ObstacleError(f"its input is made by {node.op_type}, which is not linear in each channel")
    return _makers(_only_use(step(place, node)))


def _parts(place: _Place, node: ir.Node, positions: list[tuple[int, int]], axis: int) -> tuple[Part, ...]:
    """The channels of those of a node's inputs that it has, each by its axis; `axis` is that of the node's output."""
    if place.axes != (axis % place.rank,):
        raise _ObstacleError(f"its channels are not those of the {node.op_type} that makes it")
    values = [(node.inputs[position], along) for position, along in positions if position < len(node.inputs)]
    return tuple(_part(place, value, along) for value, along in values if value is not None)


def _part(place: _Place, value: ir.Value, axis: int) -> Part:
    """The channels of an initializer that nobody else uses."""
    shape = value.shape.numpy() if value.shape is not None and _is_weight(value) else ()
    if not -len(shape) <= axis < len(shape) or shape[axis] != place.width or len(value.uses()) > 1:
        raise _ObstacleError(f"its input is made with '{value.name}', which has other uses or sizes")
    return Part(value, axis % len(shape), place.start)


def _makers_of_biased(place: _Place, node: ir.Node) -> tuple[Part, ...]:
    """A bias, and what it is added to."""
    for source, bias in (node.inputs, node.inputs[::-1]):
        if source is not None and bias is not None and _is_weight(bias) and _same_shape(source, place.value):
            if len(place.axes) > 1:
                raise _ObstacleError("a bias is added to its input, head by head")
            return (_part(place, bias, place.axes[0] - place.rank), *_makers(_only_use(replace(place, value=source))))
    raise _ObstacleError("its input is a sum of activations, which have other uses")


def _makers_of_either(place: _Place, node: ir.Node) -> tuple[Part, ...]:
    """What makes that one of two factors that can be divided."""
    reasons = []
    for source in node.inputs:
        if source is None or not _same_shape(source, place.value):
            continue
        try:
            return _makers(_only_use(replace(place, value=source)))
        except _ObstacleError as obstacle:
            reasons.append(str(obstacle))
    raise _ObstacleError(reasons[0] if reasons else "its input is a product with a constant")


def _transposed(place: _Place, node: ir.Node) -> _Place:
    permutation = node.attributes["perm"].as_ints()
    return _Place(_source(node, 0), tuple(permutation[axis] for axis in place.axes), place.start, place.width)


def _reshaped(place: _Place, node: ir.Node) -> _Place:
    """Channels that are the last axes stay the last, in however many."""
    source = _source(node, 0)
    if _same_shape(source, place.value):
        return replace(place, value=source)
    rank = len(source.shape or ())
    first, count = rank, 1
    while count < place.width and first > 0 and (side := _side(source, first - 1)) is not None:
        first, count = first - 1, count * side
    if count != place.width or place.axes != tuple(range(place.rank - len(place.axes), place.rank)):
        raise _ObstacleError("its input is reshaped across channels")
    return replace(place, value=source, axes=tuple(range(first, rank)))


def _split(place: _Place, node: ir.Node) -> _Place:
    """The channels of one piece are some of those of the whole."""
    source = _source(node, 0)
    axis = node.attributes["axis"].as_int() % place.rank if "axis" in node.attributes else 0
    sides = [_side(output, axis) or 0 for output in node.outputs]
    if place.axes != (axis,) or not all(sides):
        raise _ObstacleError("its input is a piece of a tensor, cut across channels")
    before = sum(sides[: node.outputs.index(place.value)])
    return _Place(source, place.axes, place.start + before, sum(sides))


def _mixed(place: _Place, node: ir.Node) -> _Place:
    """Attention mixes the rows of its values, head by head, and leaves their columns apart."""
    values = _source(node, 1)
    same = len(values.shape or ()) == place.rank and place.rank - 2 not in place.axes
    if not same or any(_side(values, axis) != _side(place.value, axis) for axis in place.axes):
        raise _ObstacleError("its input is a product of activations that has other channels")
    return replace(place, value=values)


def _only_use(place: _Place) -> _Place:
    if len(place.value.uses()) > 1 or place.value.is_graph_output():
        raise _ObstacleError(f"its input is made of '{place.value.name}', which has other uses")
    return place


def _source(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    assert value is not None  # the operators that are asked for have it
    return value


def _side(value: ir.Value, axis: int) -> int | None:
    side = value.shape[axis] if value.shape is not None else None
    return side if isinstance(side, int) else None


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether two tensors are known to have the same shape."""
    if one.shape is None or other.shape is None:
        return False
    known = all(isinstance(side, int) or side.value is not None for side in one.shape)
    return known and one.shape == other.shape


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None
