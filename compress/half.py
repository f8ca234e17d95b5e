"""Half-precision compute: a graph whose own types are float16, for engines that compute in the types that it has.

TensorRT's strongly typed networks are such; others choose a type by themselves, and get float16 weights behind a Cast.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from .cast import PACKED, STORED_AS, initializer, insert_after
from .int4 import FLOAT16_MAX

# Sums over thousands of elements, and squares of them, leave the range of float16 or lose most of its digits.
NORMALIZATIONS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization"})
ANGLES = frozenset({"Cos", "Sin"})  # of a timestep up to 999, which float16 has in halves
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
MADE_AS_SAID = frozenset({"Cast", "Constant", "ConstantOfShape", "Range"})  # their type is an attribute, or is kept
DATA_INPUTS = {"Resize": (0,)}  # where not all of the float inputs have the type of the output
LEAST_SCALE = 2.0**-17  # of codes: below, float16 has it with an error of more than 0.4%

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def compute_in_float16(model: ir.Model) -> ir.Model:
    """A copy of `model` that computes in float16 and has the same inputs and outputs, float32.

    Normalizations, and what leads to a sine or cosine, stay in float32, as do products with a weight beyond float16's
    range and codes with a scale below it; other constants beyond it become its largest number. Weights are converted
    one at a time, when the model is written.
    """
    model = model.clone()
    types = _Types(model)
    for node in list(model.graph):
        if node.op_type not in MADE_AS_SAID:
            types.settle(node)
    for value in list(model.graph.outputs):
        types.give_back(value)
    _remove_unused_casts(model)
    return model


class _Types:
    """The types of a graph's values as its nodes are settled in turn."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.angles = _angles(model)
        self.floats = {value for value in model.graph.inputs if value.dtype == FLOAT}
        self.floats |= {value for value in model.graph.initializers.values() if value.dtype == FLOAT}
        self.floats |= {value for node in model.graph for value in node.outputs if _is_float(node, value)}
        self.twins: dict[ir.Value, ir.Value] = {}  # the same numbers in the other type

    def settle(self, node: ir.Node) -> None:
        """Give a node its inputs in the type that it computes in, and its outputs that type."""
        kept = self._stays_float32(node)
        for position, value in enumerate(node.inputs):
            if value in self.floats and position in DATA_INPUTS.get(node.op_type, (position,)):
                node.replace_input_with(position, self._as(value, FLOAT if kept else HALF))
        for value in node.outputs:
            if value in self.floats:
                value.type = ir.TensorType(FLOAT if kept else HALF)

    def give_back(self, value: ir.Value) -> None:
        """Let an output of the graph be float32, under its own name."""
        if value not in self.floats or value.dtype != HALF:
            return
        single, name = self._as(value, FLOAT), value.name
        value.name, single.name = f"{name}.float16", name
        single.shape = value.shape
        outputs = self.model.graph.outputs
        outputs[list(outputs).index(value)] = single

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if value not in self.twins:
            self.twins[value] = self._converted(value, dtype)
        return self.twins[value]

    def _converted(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        tensor, source = value.const_value if value.is_initializer() else None, value.producer()
        if tensor is not None and dtype == HALF and PACKED not in tensor.metadata_props:
            half = f"{value.name}.float16"
            lazy = ir.LazyTensor(
                partial(_halved, tensor, half), HALF, shape=ir.Shape(tensor.shape.numpy()), name=half
            )  # fmt: skip
            return initializer(self.model, lazy)
        before = source.inputs[0] if source is not None and source.op_type == "Cast" else None
        if before is not None and before.dtype == dtype:  # a weight that is stored in it
            return before
        node = ir.node("Cast", [value], {"to": dtype.value})
        made = node.outputs[0]
        made.name, made.shape = f"{value.name}.{'float16' if dtype == HALF else 'float32'}", value.shape
        made.type = ir.TensorType(dtype)
        insert_after(self.model, value, node)
        return made

    def _stays_float32(self, node: ir.Node) -> bool:
        if node.op_type in NORMALIZATIONS or node in self.angles:
            return True
        if node.op_type in PRODUCTS:
            return any(_is_beyond(value) for value in node.inputs[1:2] if value is not None)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and (scale := node.inputs[1]) is not None:
            return scale.dtype == FLOAT and scale.const_value is not None and _has_tiny(scale.const_value)
        return False


def _is_float(node: ir.Node, value: ir.Value) -> bool:
    """Whether what a node of a float32 graph makes is float32; compression leaves some of its values without a type."""
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == FLOAT
    if node.op_type == "DequantizeLinear":
        scale = node.inputs[1]
        return scale is not None and scale.dtype == FLOAT
    return value.dtype == FLOAT


def _angles(model: ir.Model) -> set[ir.Node]:
    """Sines and cosines, and the nodes that lead to them."""
    found = {node for node in model.graph if node.op_type in ANGLES}
    waiting = list(found)
    while waiting:
        before = {value.producer() for value in waiting.pop().inputs if value is not None} - {None} - found
        waiting += [node for node in before if node is not None]
        found |= set(waiting)
    return found


def _is_beyond(value: ir.Value) -> bool:
    """Whether a weight has numbers that float16 lacks."""
    tensor = value.const_value if value.is_initializer() else None
    if tensor is None or tensor.dtype != FLOAT or tensor.metadata_props.get(STORED_AS) == "F16":
        return False
    return not float(np.abs(tensor.numpy()).max()) <= FLOAT16_MAX


def _has_tiny(scales: ir.TensorProtocol) -> bool:
    return bool((np.abs(scales.numpy()) < LEAST_SCALE).any())


def _halved(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    array = tensor.numpy()
    clipped = np.where(np.isfinite(array), np.clip(array, -FLOAT16_MAX, FLOAT16_MAX), array)
    return ir.tensor(clipped.astype(np.float16), name=name)


def _remove_unused_casts(model: ir.Model) -> None:
    """Take out the casts, and the initializers, that nothing uses any more."""
    outputs = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        made = node.outputs[0]
        if node.op_type == "Cast" and not made.uses() and made not in outputs:
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]
