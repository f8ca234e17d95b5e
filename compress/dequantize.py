"""Weights of eight bits: kept as int8 in the graph, each output channel with a scale, behind a DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .cast import initializer, stand_in


def dequantize_weight(
    model: ir.Model, value: ir.Value, weight: ir.TensorProtocol, scales: NDArray[np.float32], axis: int
) -> None:
    """Let what uses `value` use `weight`, int8, times the scale of its place along `axis`."""
    inputs = [initializer(model, weight), initializer(model, ir.tensor(scales, name=f"{value.name}.scales"))]
    stand_in(model, value, ir.node("DequantizeLinear", inputs, {"axis": axis}))
