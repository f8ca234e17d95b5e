"""Narrow the blocks of a graph as a recipe says: channels, feed-forward neurons and attention heads go for good.

The graph gets smaller: weights, shapes, and the numbers of groups and heads. Weights stay lazy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..runtime.errors import UserError
from .blocks import Block, UnfitError, find_block, turned_keys
from .cast import initializer, replace_tensor
from .inputs import MOST_COLUMNS, Inputs
from .layers import Layer, find_layers
from .recipe import Left, Recipe, Structured
from .structured import kept_units, narrowed, unit_channels, unit_losses

ReadCovariance = Callable[[], "NDArray[np.float32] | None"]


def narrow(model: ir.Model, component: str, recipe: Recipe, inputs: Inputs) -> tuple[ir.Model, Inputs, list[Left]]:
    """A copy of `model` without the parts of its blocks that are the least missed.

    Also `inputs` for the layers as they are then, and the blocks that an entry of the recipe is for but can't take.
    What is lost is measured at the layers that the blocks flow into, by the covariance of their channels.
    """
    model, left, kept_channels = model.clone(), [], {}
    for layer in find_layers(model):
        entry = recipe.structured_entry(component, layer.name)
        if entry is None:
            continue
        try:
            block = find_block(layer, entry.kind)
            kept_channels[layer.name] = _narrow_block(model, block, entry, inputs)
        except UnfitError as error:
            left.append(Left(layer.name, f"keeps its {entry.kind}: {error}"))
        except ValueError as error:
            message = f"the recipe '{recipe.name}' can't be applied to '{layer.name}' of {component}: {error}"
            raise UserError(message, hint="leave the block out of the recipe's `structured`") from error
    RemoveUnusedNodesPass()(model)
    return model, inputs.narrowed(kept_channels), left


def _narrow_block(model: ir.Model, block: Block, entry: Structured, inputs: Inputs) -> NDArray[np.int64]:
    """Take an entry's fraction of units out of a block; the layer's inputs that stay."""
    covariance = inputs.channel_covariance(block.layer)
    if covariance is None:
        raise UnfitError(f"a covariance of {block.channels} channels is too large; at most {MOST_COLUMNS} are taken")
    kept = kept_units(unit_losses(_by_channel(block.layer), covariance, block.units), entry.fraction)
    if len(kept) == block.units:
        raise UnfitError(f"of {block.units} to choose from, {entry.fraction:g} is less than one")
    for value, side in block.sides.items():
        _shorten(value, side.axis, side.kept(block.units, kept))
    for node in block.nodes:
        _renumber(model, node, len(kept))
    channels = unit_channels(kept, block.channels // block.units)
    _replace_weight(block.layer, channels, partial(inputs.channel_covariance, block.layer) if entry.correct else None)
    return channels


def _by_channel(layer: Layer) -> NDArray[np.float32]:
    """A layer's weight as (rows, places of the kernel, channels)."""
    return layer.matrix().reshape(layer.matrix_shape[0], -1, layer.matrix_shape[-1])


def _shorten(value: ir.Value, axis: int, kept: NDArray[np.int64]) -> None:
    """Of a weight keep some places along an axis; of an activation's shape as many."""
    assert value.shape is not None  # find_block looked
    value.shape = ir.Shape([len(kept) if place == axis else size for place, size in enumerate(value.shape)])
    if value.const_value is not None:
        replace_tensor(value, partial(_taken, value.const_value, axis, kept), value.const_value.metadata_props)


def _taken(weight: ir.TensorProtocol, axis: int, kept: NDArray[np.int64]) -> NDArray[np.float32]:
    taken: NDArray[np.float32] = weight.numpy().take(kept, axis)
    return taken


def _replace_weight(layer: Layer, kept: NDArray[np.int64], covariance: ReadCovariance | None) -> None:
    """Keep some input channels of a layer, which make up for the others if there is a covariance of them."""
    value, axis = layer.value, layer.permutation.index(len(layer.permutation) - 1)
    assert value.const_value is not None  # find_layers takes no others
    value.shape = ir.Shape(
        [len(kept) if place == axis else size for place, size in enumerate(value.const_value.shape.numpy())]
    )
    replace_tensor(value, partial(_narrowed, value.const_value, axis, kept, covariance))


def _narrowed(
    weight: ir.TensorProtocol, axis: int, kept: NDArray[np.int64], covariance: ReadCovariance | None
) -> NDArray[np.float32]:
    by_channel = np.moveaxis(weight.numpy(), axis, -1)
    smaller = narrowed(by_channel, kept, None if covariance is None else covariance())
    return np.ascontiguousarray(np.moveaxis(smaller, -1, axis))


def _renumber(model: ir.Model, node: ir.Node, units: int) -> None:
    """Let a node that counts groups or heads count those that are left."""
    if node.op_type == "GroupNormalization":
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", units)
    elif node.op_type == "Reshape":
        if inner := turned_keys(node):
            _replace_node(model, node, ir.node("Transpose", [inner[0].inputs[0]], {"perm": (0, 1, 3, 2)}))
        else:
            _leave_heads_open(model, node)


def _leave_heads_open(model: ir.Model, node: ir.Node) -> None:
    """Let a Reshape take as many heads as come: (b, n, -1, width), (b, n, -1) or, if it changes nothing, as it is."""
    taken, made = node.inputs[0], node.outputs[0]
    assert taken is not None and taken.shape is not None and made.shape is not None  # find_block looked
    if len(made.shape) == 3:
        sides = [0, 0, -1]
    elif len(taken.shape) == 3:
        width = made.shape[3]
        assert isinstance(width, int)  # find_block looked
        sides = [0, 0, -1, width]
    else:
        sides = [0, 0, 0, 0]
    shape = initializer(model, ir.tensor(np.array(sides, np.int64), name=f"{made.name}.sides"))
    node.replace_input_with(1, shape)
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _replace_node(model: ir.Model, node: ir.Node, other: ir.Node) -> None:
    """Put a node of one output in the place of another, under the names that it had."""
    old, new = node.outputs[0], other.outputs[0]
    new.shape, new.type = old.shape, old.type
    model.graph.insert_before(node, other)
    ir.convenience.replace_all_uses_with(old, new)
    model.graph.remove(node, safe=True)
    new.name = old.name
