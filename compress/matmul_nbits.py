"""Linear layers that compute from four bits: ONNX Runtime's MatMulNBits, which OpenVINO reads as well."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.bits import pack_bits
from .cast import initializer
from .int4 import BlockWeights

DOMAIN = "com.microsoft"
ROUNDED_INPUT = 4  # the accuracy level at which ONNX Runtime rounds activations to int8: twice as fast


def multiply_by_blocks(model: ir.Model, value: ir.Value, blocks: BlockWeights) -> None:
    """Let each product with `value`, a weight (inputs, outputs), be computed from `blocks`, its transposed weight."""
    rows, columns = blocks.codes.shape
    stored = initializer(model, ir.tensor(blocks.scales, name=f"{value.name}.scales"))
    scales = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})  # the operator wants the type of its input
    scales.outputs[0].name = f"{value.name}.scales.cast"
    model.graph.insert_before(model.graph[0], scales)
    inputs = [initializer(model, ir.tensor(_packed_codes(blocks), name=f"{value.name}.codes")), scales.outputs[0]]
    if (blocks.zero_points != 8).any():
        padded = np.pad(blocks.zero_points, ((0, 0), (0, blocks.zero_points.shape[1] % 2)), constant_values=8)
        packed = pack_bits(padded.reshape(-1), 4).reshape(rows, -1)
        inputs.append(initializer(model, ir.tensor(packed, name=f"{value.name}.zero_points")))
    sizes = {"K": columns, "N": rows, "bits": 4, "block_size": blocks.block, "accuracy_level": ROUNDED_INPUT}
    for node, _ in list(value.uses()):
        product = ir.node("MatMulNBits", [node.inputs[0], *inputs], sizes, domain=DOMAIN)
        result, old = product.outputs[0], node.outputs[0]
        result.name, result.shape, result.type = old.name, old.shape, old.type
        model.graph.insert_before(node, product)
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    model.graph.opset_imports[DOMAIN] = 1
    del model.graph.initializers[str(value.name)]


def _packed_codes(blocks: BlockWeights) -> NDArray[np.uint8]:
    """Two codes in each byte, the first in its lower half, of whole blocks: (rows, blocks, block / 2)."""
    rows, columns = blocks.codes.shape
    count = blocks.scales.shape[1]
    filler = np.repeat(blocks.zero_points[:, -1:], count * blocks.block - columns, axis=1)
    whole = np.concatenate([blocks.codes, filler], axis=1)
    return pack_bits(whole.reshape(-1), 4).reshape(rows, count, -1)
