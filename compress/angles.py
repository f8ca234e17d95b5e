"""Angles of the timestep's embedding, kept in float32.

They go up to the number of timesteps, 1000 radians: in float16, in which Hexagon computes what is not in whole codes, a
step there is half a radian. What computes them is left to the CPU, by the kinds of its operators; so a product that
makes angles has to be of a kind of its own.
"""

from __future__ import annotations

import onnx_ir as ir

ANGLES = frozenset({"Cos", "Sin"})
OUTER = "i,kj->ij"  # (n,) timesteps times (1, m) rates


def leading_to_angles(model: ir.Model) -> set[ir.Node]:
    """The nodes that compute sines and cosines, and all that they take."""
    found: set[ir.Node] = set()
    left = [node for node in model.graph if node.op_type in ANGLES]
    while left:
        node = left.pop()
        found.add(node)
        producers = (value.producer() for value in node.inputs if value is not None)
        left += [producer for producer in producers if producer is not None and producer not in found]
    return found


def angles_apart(model: ir.Model) -> ir.Model:
    """A copy of `model` in which an Einsum makes the angles of the timesteps, in place of an Unsqueeze and a Mul."""
    model = model.clone()
    leading = leading_to_angles(model)
    for node in [node for node in model.graph if node in leading and node.op_type == "Mul"]:
        column, rates = node.inputs
        turned = column.producer() if column is not None else None
        if column is None or rates is None or turned is None or turned.op_type != "Unsqueeze":
            continue
        timesteps = turned.inputs[0]
        if timesteps is None or len(timesteps.shape or ()) != 1 or [*(rates.shape or ())][:-1] != [1]:
            continue
        product = ir.node("Einsum", [timesteps, rates], {"equation": OUTER})
        made, old = product.outputs[0], node.outputs[0]
        made.name, made.shape, made.type = old.name, old.shape, old.type
        model.graph.insert_before(node, product)
        ir.convenience.replace_all_uses_with(old, made)
        old.name = None
        model.graph.remove(node, safe=True)
        if not column.uses():
            model.graph.remove(turned, safe=True)
    return model
