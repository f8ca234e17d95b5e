"""What gets narrower together with a layer's inputs: found in the graph, from the layer back to what makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .layers import Layer
from .recipe import Kind
from .structured import unit_channels


class UnfitError(ValueError):
    """A block that is not made as its kind is; the message says of what flows into the layer what is wrong."""


@dataclass(frozen=True)
class Side:
    """The axis of a tensor that gets shorter, its length, and how often the units follow each other in it."""

    axis: int
    size: int
    copies: int = 1

    def kept(self, units: int, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places along the axis that stay when `kept` of the units do."""
        width = self.size // (units * self.copies)
        return np.concatenate([unit_channels(kept + copy * units, width) for copy in range(self.copies)])


@dataclass(frozen=True)
class Block:
    """A layer, the tensors that lead to it, activations and weights alike, and the nodes that they pass."""

    layer: Layer
    units: int  # groups of channels, neurons or heads: what goes as one
    sides: dict[ir.Value, Side]
    nodes: dict[ir.Node, None]  # in order
    channels: int  # inputs of the layer


Sources = Iterator[tuple[ir.Value | None, Side]]


def find_block(layer: Layer, kind: Kind) -> Block:
    """The block whose channels, neurons or heads flow into a layer.

    Channels go by whole groups of their GroupNormalization, so that those that stay are normalized as before. Raises
    UnfitError for a graph in which something else makes or uses what would go.
    """
    source, channels = layer.node.inputs[0], layer.matrix_shape[-1]
    if source is None or len(layer.value.uses()) > 1:
        raise UnfitError("its weight is used more than once")
    start = Side(1 if layer.op_type == "Conv" else len(_shape(source)) - 1, channels)
    sides: dict[ir.Value, Side] = {}
    nodes: dict[ir.Node, None] = {}
    _follow(source, start, sides, nodes)
    inner = {one for node in nodes if node.op_type == "Reshape" for one in turned_keys(node)}
    _check_uses(sides, {*nodes, *inner, layer.node})
    units = _units(kind, channels, nodes)
    if any(side.size % (units * side.copies) for side in sides.values()):
        raise UnfitError(f"its {channels} inputs do not divide into {units}")
    return Block(layer, units, sides, nodes, channels)


def _units(kind: Kind, channels: int, nodes: dict[ir.Node, None]) -> int:
    """How many units there are, by what the inputs pass on their way."""
    groups = [node.attributes["num_groups"].as_int() for node in nodes if node.op_type == "GroupNormalization"]
    heads = [merged_heads(node) for node in nodes if node.op_type == "Reshape" and merged_heads(node)]
    if kind == "channels" and len(groups) == 1 and not heads:
        return groups[0]
    if kind == "heads" and len(heads) == 1 and not groups:
        return heads[0]
    if kind == "neurons" and not groups and not heads:
        return channels
    raise UnfitError(f"what flows into it are not {kind}, by its {len(groups)} group norms and {len(heads)} reshapes")


def merged_heads(node: ir.Node) -> int:
    """How many heads a Reshape (b, n, heads, width) -> (b, n, heads * width) puts together; 0 if it does not."""
    taken, made = _shape(node.inputs[0]), _shape(node.outputs[0])
    if len(taken) == 4 and len(made) == 3 and isinstance(taken[2], int) and isinstance(taken[3], int):
        return taken[2] if made[2] == taken[2] * taken[3] else 0
    return 0


def turned_keys(node: ir.Node) -> tuple[ir.Node, ...]:
    """Reshape and Transpose by which a Reshape makes (b, h, d, n) of (b, h, n, d), over (b * h, n, d); none if not."""
    turn = node.inputs[0].producer() if node.inputs[0] is not None else None
    flatten = turn.inputs[0].producer() if turn is not None and turn.inputs[0] is not None else None
    if turn is None or flatten is None or turn.op_type != "Transpose" or flatten.op_type != "Reshape":
        return ()
    taken, flat, made = _shape(flatten.inputs[0]), _shape(flatten.outputs[0]), _shape(node.outputs[0])
    if tuple(turn.attributes["perm"].as_ints()) != (0, 2, 1) or len(taken) != 4 or len(made) != 4:
        return ()
    pairs = (*zip(taken[2:], flat[1:], strict=True), (taken[2], made[3]), (taken[3], made[2]))
    same = all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))  # open sides are not known
    return (flatten, turn) if same else ()


def _follow(value: ir.Value, side: Side, sides: dict[ir.Value, Side], nodes: dict[ir.Node, None]) -> None:
    """Note a tensor and, back to the weights, all that has to get narrower with it."""
    if value in sides:
        if sides[value] != side:
            raise UnfitError(f"'{value.name}' is used in two ways")
        return
    length = _shape(value)[side.axis]
    if isinstance(length, int) and length != side.size:
        raise UnfitError(f"'{value.name}' has {length} places where {side.size} lead to it")
    sides[value] = side
    node = value.producer()
    if node is None:
        if not value.is_initializer():
            raise UnfitError(f"'{value.name}' comes from outside")
        return
    if node.op_type not in SOURCES:
        raise UnfitError(f"there is a {node.op_type} in what flows into it")
    nodes[node] = None
    for source, its_side in SOURCES[node.op_type](node, side):
        if source is not None:
            _follow(source, its_side, sides, nodes)


def _elementwise(node: ir.Node, side: Side) -> Sources:
    """Of what is broadcast along the axis, nothing goes."""
    rank = len(_shape(node.outputs[0]))
    for value in node.inputs:
        shape = _shape(value)
        axis = side.axis - rank + len(shape)
        if axis >= 0 and shape[axis] != 1:
            yield value, replace(side, axis=axis)


def _softmax(node: ir.Node, side: Side) -> Sources:
    if node.attributes["axis"].as_int() in (side.axis, side.axis - len(_shape(node.outputs[0]))):
        raise UnfitError("a Softmax goes over what would go")
    yield node.inputs[0], side


def _transpose(node: ir.Node, side: Side) -> Sources:
    yield node.inputs[0], replace(side, axis=node.attributes["perm"].as_ints()[side.axis])


def _unsqueeze(node: ir.Node, side: Side) -> Sources:
    axes = node.inputs[1].const_value if node.inputs[1] is not None else None
    if axes is None or min(axes.numpy()) <= side.axis:
        raise UnfitError("an Unsqueeze comes before its channels")
    yield node.inputs[0], side


def _split(node: ir.Node, side: Side) -> Sources:
    """Of halves, as in GEGLU, the same units go from each."""
    if node.attributes["axis"].as_int() not in (side.axis, side.axis - len(_shape(node.outputs[0]))):
        raise UnfitError("a Split is along another axis")
    parts = len(node.outputs)
    if any(_shape(value)[side.axis] != side.size for value in node.outputs):
        raise UnfitError("a Split has parts of several sizes")
    yield node.inputs[0], Side(side.axis, side.size * parts, side.copies * parts)


def _group_norm(node: ir.Node, side: Side) -> Sources:
    if side.axis != 1:
        raise UnfitError("a GroupNormalization is along another axis")
    yield node.inputs[0], side
    for parameter in node.inputs[1:]:
        yield parameter, replace(side, axis=0)


def _product(node: ir.Node, side: Side) -> Sources:
    """Of a layer, its outputs go; of two activations, pairs of matrices."""
    weight = node.inputs[1]
    rank = len(_shape(node.outputs[0]))
    if node.op_type == "Conv" and side.axis == 1 and node.attributes["group"].as_int() == 1:
        places = (0, 0)
    elif node.op_type == "Gemm" and side.axis == 1:
        places = (0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1, 0)
    elif weight is not None and weight.is_initializer() and side.axis == rank - 1:
        places = (1, 0)
    elif node.op_type == "MatMul" and side.axis < rank - 2:
        yield from _elementwise(node, side)
        return
    else:
        raise UnfitError(f"the {node.op_type} before it is along another axis")
    for value, axis in zip(node.inputs[1:], places, strict=False):
        if value is not None and not value.is_initializer():
            raise UnfitError(f"'{value.name}' is no weight")
        yield value, replace(side, axis=axis)


def _reshape(node: ir.Node, side: Side) -> Sources:
    """Heads are put together or apart, or keys turned."""
    source = node.inputs[0]
    taken, made = _shape(source), _shape(node.outputs[0])
    inner = turned_keys(node)
    if inner and side.axis == 1:
        yield inner[0].inputs[0], side
    elif merged_heads(node) and side.axis == 2:
        yield source, replace(side, size=merged_heads(node))
    elif len(taken) == 3 and len(made) == 4 and side.axis == 2 and isinstance(width := made[3], int):
        yield source, replace(side, size=side.size * width)
    elif taken == made and len(made) == 4:
        yield source, side
    else:
        raise UnfitError(f"there is a Reshape of {list(taken)} to {list(made)} in what flows into it")


SOURCES: dict[str, Callable[[ir.Node, Side], Sources]] = {
    **dict.fromkeys(("Add", "Gelu", "IsNaN", "Mul", "Sigmoid", "Tanh", "Erf", "Div", "Where"), _elementwise),
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), _product),
    "GroupNormalization": _group_norm, "Reshape": _reshape, "Softmax": _softmax, "Split": _split,
    "Transpose": _transpose, "Unsqueeze": _unsqueeze,
}  # fmt: skip


def _check_uses(sides: dict[ir.Value, Side], nodes: set[ir.Node]) -> None:
    """Raises UnfitError for a tensor that is used outside of the block, too."""
    for value in sides:
        for use in value.uses():
            if use.node not in nodes and not _leads_to(use.node, nodes):
                raise UnfitError(f"'{value.name}' is used by a {use.node.op_type} elsewhere, too")
        if value.is_graph_output():
            raise UnfitError(f"'{value.name}' leaves the graph")


def _leads_to(node: ir.Node, nodes: set[ir.Node]) -> bool:
    """Whether the shape that a node reads is used in the block alone, and what it makes nowhere else."""
    uses = [use.node for value in node.outputs for use in value.uses()]
    known = node.op_type in ("Shape", "Slice", "Concat")
    return known and all(use in nodes or _leads_to(use, nodes) for use in uses)


def _shape(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...]:
    if value is None or value.shape is None:
        raise UnfitError(f"the shape of '{value.name if value else None}' is not known")
    return tuple(value.shape)
