"""Inputs of a linear layer divided by a factor each, so that its weights can be multiplied by it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .cast import initializer
from .layers import Layer


def divide_inputs(model: ir.Model, layer: Layer, factors: NDArray[np.float32]) -> None:
    """Divide what flows into each node that uses a layer's weight by `factors`, (columns,), along its last axis."""
    inverse = initializer(model, ir.tensor(np.float32(1) / factors, name=f"{layer.value.name}.inverse"))
    for number, (node, _) in enumerate(list(layer.value.uses())):
        source = node.inputs[0]
        scaled = ir.node("Mul", [source, inverse])
        result = scaled.outputs[0]
        result.name, result.type = f"{layer.value.name}.input{number}", ir.TensorType(ir.DataType.FLOAT)
        if source is not None:
            result.shape = source.shape
        model.graph.insert_before(node, scaled)
        node.replace_input_with(0, result)
