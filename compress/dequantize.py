"""Weights of eight and four bits, kept as integers in the graph behind a DequantizeLinear.

Those of eight have a scale for each output channel, those of four one for each block of inputs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .cast import initializer, stand_in
from .int4 import BlockWeights


def dequantize_weight(
    model: ir.Model, value: ir.Value, weight: ir.TensorProtocol, scales: NDArray[np.float32], axis: int
) -> None:
    """Let what uses `value` use `weight`, int8, times the scale of its place along `axis`."""
    inputs = [initializer(model, weight), initializer(model, ir.tensor(scales, name=f"{value.name}.scales"))]
    stand_in(model, value, ir.node("DequantizeLinear", inputs, {"axis": axis}))


def dequantize_blocks(model: ir.Model, value: ir.Value, blocks: BlockWeights) -> None:
    """Let what uses `value`, a weight (inputs, outputs), use `blocks`, its transposed weight in four bits.

    This is what TensorRT reads: symmetric codes, scales above 0 and whole blocks. Raises ValueError for others.
    """
    columns, zero = blocks.codes.shape[1], 8
    if (blocks.zero_points != zero).any() or (blocks.scales <= 0).any():
        raise ValueError("its blocks of four bits have zero points, or scales that are not positive")
    if columns % blocks.block:
        raise ValueError(f"{columns} inputs are no whole blocks of {blocks.block}")
    codes = np.ascontiguousarray(blocks.codes.T.astype(np.int8) - zero)
    stored = ir.tensor(codes, dtype=ir.DataType.INT4, name=f"{value.name}.codes")
    scales = ir.tensor(np.ascontiguousarray(blocks.scales.T), name=f"{value.name}.scales")
    inputs = [initializer(model, stored), initializer(model, scales)]
    weight = ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": blocks.block})
    result = weight.outputs[0]
    result.name, result.shape, result.type = f"{value.name}.half", value.shape, ir.TensorType(ir.DataType.FLOAT16)
    stand_in(model, value, ir.node("Cast", [result], {"to": ir.DataType.FLOAT.value}))
    model.graph.insert_before(model.graph[0], weight)
