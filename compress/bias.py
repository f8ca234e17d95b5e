"""Biases of convolutions as additions of their own.

A convolution in integers takes its bias in steps of the input's scale times the weight's, which must not change from
run to run: with ranges by timestep ONNX Runtime would compute it in float.
"""

from __future__ import annotations

import onnx_ir as ir

from .cast import initializer


def biases_apart(model: ir.Model) -> ir.Model:
    """A copy of `model` in which an Add follows each convolution of pictures in place of its bias."""
    model = model.clone()
    for node in list(model.graph):
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        tensor = bias.const_value if bias is not None else None
        if bias is None or tensor is None:
            continue
        column = initializer(model, ir.tensor(tensor.numpy().reshape(1, -1, 1, 1), name=f"{bias.name}.column"))
        made, added = node.outputs[0], ir.node("Add", [node.outputs[0], column])
        result = added.outputs[0]
        ir.convenience.replace_all_uses_with(made, result, replace_graph_outputs=True)
        added.replace_input_with(0, made)
        result.name, result.type, result.shape = made.name, made.type, made.shape
        made.name = f"{made.name}.unbiased"
        node.replace_input_with(2, None)
        model.graph.insert_after(node, added)
        if not bias.uses():
            del model.graph.initializers[str(bias.name)]
    return model
