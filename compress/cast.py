"""Half-precision storage: weights are kept in 16 bits and cast back in the graph, so compute stays float32."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

MIN_ELEMENTS = 1024  # biases, norms and constants of the graph stay exact: their size is nothing
FLOAT16_MAX = 65504.0
STORED_AS = "stored as"  # the metadata key of a tensor that says in which type a checkpoint has it


def cast_weights(model: ir.Model) -> ir.Model:
    """A copy of `model` whose float32 weights are stored as float16, each behind a Cast to float32.

    Engines fold the cast away at load or keep the weight compressed, as they see fit. A weight beyond
    float16's range stays as it is. Tensors are converted one at a time, when the model is written.
    """
    model = model.clone()
    for name, value in list(model.graph.initializers.items()):
        weight = value.const_value
        if weight is None or weight.dtype != ir.DataType.FLOAT or weight.size < MIN_ELEMENTS or len(weight.shape) < 2:
            continue
        if weight.metadata_props.get(STORED_AS) != "F16" and not abs(weight.numpy()).max() <= FLOAT16_MAX:
            continue
        half = f"{name}.float16"
        shape = ir.Shape(weight.shape.numpy())
        lazy = ir.LazyTensor(partial(_halved, weight, half), ir.DataType.FLOAT16, shape=shape, name=half)
        stored = ir.Value(name=half, shape=shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=lazy)
        model.graph.register_initializer(stored)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})
        result = cast.outputs[0]
        result.name, result.shape, result.type = f"{name}.cast", shape, ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(value, result)
        model.graph.insert_before(model.graph[0], cast)
        del model.graph.initializers[name]
    return model


def _halved(weight: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    return ir.tensor(weight.numpy().astype("float16"), name=name)
