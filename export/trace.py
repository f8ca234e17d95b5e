"""From a checkpoint to an ONNX model without loading a weight.

The module is built and traced on the meta device. The result, a skeleton, depends on the configuration alone; its
weights are attached when it is read: they stay in the checkpoint's own safetensors until somebody writes them out.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch.export import Dim

from ..compress.cast import STORED_AS, derived
from ..compress.layers import TRANSPOSED, checkpoint_name
from ..runtime.safetensors import StoredTensor
from ..runtime.shapes import dimensions, resolve
from .checkpoint import PART_OF, Checkpoint
from .components import COMPONENT_SPECS, empty_part, find_weight
from .shapes import InputShapes, Shapes, exported_shapes

OPSET = 21
FOLD_LIMIT_ELEMENTS = 8192  # larger constants stay as they are: folding would hold them in memory
WEIGHT = "weight"  # the metadata key of an initializer that names the checkpoint's tensor


def trace(checkpoint: Checkpoint, component: str, shapes: Shapes) -> ir.Model:
    """The ONNX model of one component, float32, without its weights: only their names and shapes are in it.

    `load_skeleton` finds them. With one size and batch 1 all shapes are static; otherwise the dimensions that
    differ keep their names.
    """
    numbers = dimensions(shapes.sizes[0], checkpoint.vae_scale_factor, shapes.batch)
    model = _export(checkpoint, component, exported_shapes(checkpoint, component, shapes), numbers)
    for name, value in model.graph.initializers.items():
        if getattr(getattr(value.const_value, "raw", None), "is_meta", False):
            value.const_value = None  # nothing may look at it
            value.metadata_props[WEIGHT] = checkpoint_name(name)
    optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT_ELEMENTS, output_size_limit=FOLD_LIMIT_ELEMENTS)
    _drop_nan_guards(model)
    _tidy(model, component)
    return model


def save_skeleton(model: ir.Model, file: Path) -> None:
    """Write what `trace` made; the missing weights are external tensors of no file."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None and value.shape is not None and value.dtype is not None:
            value.const_value = ir.ExternalTensor(
                value.metadata_props[WEIGHT], None, None, value.dtype, shape=value.shape, name=name
            )
    ir.save(model, file)


def load_skeleton(file: Path, stored: dict[str, StoredTensor]) -> ir.Model:
    """What `save_skeleton` wrote, with its weights: each is read from the checkpoint whenever it is asked for.

    Raises UserError for a weight that the checkpoint lacks, or has in another shape.
    """
    model = ir.load(file)
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            shape = tuple(value.const_value.shape.numpy())
            found = find_weight(stored, str(value.const_value.location), shape)
            value.const_value = _lazy(name, shape, found)
    _fold_weight_transposes(model)
    return model


def _export(checkpoint: Checkpoint, component: str, inputs: InputShapes, numbers: dict[str, int]) -> ir.Model:
    spec = COMPONENT_SPECS[component]
    open_sides = _open_sides(checkpoint)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # that a weight has no value yet is no news
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = spec.module(empty_part(checkpoint, PART_OF[component])).eval()
        tensors = tuple(
            torch.empty(resolve(shape, numbers), dtype=getattr(torch, dtype)) for shape, dtype in inputs.values()
        )
        dynamic = {
            name: {axis: open_sides[side] for axis, side in enumerate(shape) if isinstance(side, str)}
            for name, (shape, _) in inputs.items()
        }
        program = torch.onnx.export(
            module, tensors, input_names=list(inputs), output_names=[spec.output], opset_version=OPSET,
            dynamo=True, optimize=False, verbose=False, dynamic_shapes=dynamic if any(dynamic.values()) else None,
        )  # fmt: skip
    model: ir.Model = program.model
    for value in model.graph.inputs:
        value.shape = ir.Shape(inputs[str(value.name)][0])
    for value in model.graph.outputs:
        sides = zip(value.shape or (), spec.output_sides or value.shape or (), strict=True)
        value.shape = ir.Shape([side if isinstance(side, int) else name for side, name in sides])
    return model


def _open_sides(checkpoint: Checkpoint) -> dict[str, Any]:
    """The open dimensions as torch.export wants them: as multiples of what the UNet divides them by."""
    unit = checkpoint.size_multiple
    latent_unit = unit // checkpoint.vae_scale_factor
    rows, columns = Dim("rows"), Dim("columns")
    return {
        "batch": Dim("batch"),
        "height": unit * rows, "width": unit * columns,
        "latent_height": latent_unit * rows, "latent_width": latent_unit * columns,
    }  # fmt: skip


def _lazy(name: str, shape: tuple[int, ...], stored: StoredTensor) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(stored.float32().reshape(shape), name=name),
        ir.DataType.FLOAT, shape=ir.Shape(shape), name=name, metadata_props={STORED_AS: stored.dtype},
    )  # fmt: skip


def _fold_weight_transposes(model: ir.Model) -> None:
    """Replace Transpose(weight) by a weight that is transposed when read, so that engines need not do it."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.name is None or source.const_value is None:
            continue
        weight, permutation = source.const_value, list(node.attributes["perm"].as_ints())
        name = f"{source.name}{TRANSPOSED}{''.join(map(str, permutation))}"
        sizes = weight.shape.numpy()
        folded = derived(
            model, weight, name, partial(np.transpose, axes=permutation), tuple(sizes[axis] for axis in permutation)
        )
        ir.convenience.replace_all_uses_with(node.outputs[0], folded)
        model.graph.remove(node, safe=True)
        if not source.uses():
            del model.graph.initializers[source.name]


def _drop_nan_guards(model: ir.Model) -> None:
    """Take softmax's result as it is where the mask leaves something in every row.

    PyTorch puts zeros for rows that are masked out whole, which are 0/0. Intel's NPU has no IsNaN.
    """
    for node in list(model.graph):
        softmax = node.inputs[0].producer() if node.op_type == "IsNaN" and node.inputs[0] is not None else None
        masked = softmax.inputs[0].producer() if softmax is not None and softmax.inputs[0] is not None else None
        if softmax is None or softmax.op_type != "Softmax" or masked is None or masked.op_type != "Add":
            continue
        constants = [value.const_value for value in masked.inputs if value is not None]
        if any(mask is not None and np.isfinite(mask.numpy()).any(axis=-1).all() for mask in constants):
            for chosen, _ in list(node.outputs[0].uses()):
                ir.convenience.replace_all_uses_with(chosen.outputs[0], softmax.outputs[0])
                model.graph.remove(chosen, safe=True)
            model.graph.remove(node, safe=True)


def _tidy(model: ir.Model, component: str) -> None:
    """Drop the tracer's notes (a quarter of the file) and functions, name the graph."""
    optimizer.remove_unused_nodes(model)
    model.graph.name = component
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
