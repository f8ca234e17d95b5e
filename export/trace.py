"""From a checkpoint to an ONNX model without loading a weight.

The module is built and traced on the meta device; its initializers then point into the checkpoint's own
safetensors, where the bytes stay until somebody writes the model out.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial

import onnx_ir as ir
import torch
from onnxscript import optimizer

from ..runtime.errors import UserError
from .checkpoint import Checkpoint
from .components import COMPONENT_SPECS, ComponentSpec, empty_part
from .safetensors import StoredTensor

OPSET = 21
FOLD_LIMIT_ELEMENTS = 8192  # larger constants stay as they are: folding would hold them in memory
DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def trace(checkpoint: Checkpoint, component: str, width: int, height: int) -> ir.Model:
    """The ONNX model of one component at a picture size, float32, with static shapes and lazy weights."""
    spec = COMPONENT_SPECS[component]
    model = _export(spec, checkpoint, width, height)
    _attach_weights(model, checkpoint.weights(spec.part))
    optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT_ELEMENTS, output_size_limit=FOLD_LIMIT_ELEMENTS)
    _fold_weight_transposes(model)
    _tidy(model, component)
    return model


def _export(spec: ComponentSpec, checkpoint: Checkpoint, width: int, height: int) -> ir.Model:
    inputs = spec.inputs(checkpoint, width, height)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = spec.module(empty_part(checkpoint, spec.part)).eval()
        tensors = tuple(torch.empty(shape, dtype=dtype) for shape, dtype in inputs.values())
        program = torch.onnx.export(
            module, tensors, input_names=list(inputs), output_names=[spec.output], opset_version=OPSET,
            dynamo=True, optimize=False, verbose=False,
        )  # fmt: skip
    model: ir.Model = program.model
    return model


def _attach_weights(model: ir.Model, stored: dict[str, StoredTensor]) -> None:
    for name, value in model.graph.initializers.items():
        tensor = getattr(value.const_value, "raw", None)
        if tensor is None or tensor.device.type != "meta":
            continue  # a constant of the graph, with its data
        found = next((stored[key] for key in _stored_names(name) if key in stored), None)
        if found is None:
            raise UserError(f"the checkpoint has no weight '{name}'", hint="is it complete?")
        value.const_value = _lazy_float32(name, tuple(tensor.shape), found)


def _stored_names(name: str) -> list[str]:
    """How a parameter of a component may be called in a file, by the version that saved it."""
    bare = name.removeprefix("unet.").removeprefix("text_encoder.")  # the component's attribute around its part
    names = [bare, f"text_model.{bare}"]
    for new, old in OLD_ATTENTION_NAMES.items():
        if f".attentions.0.{new}." in bare:
            names.append(bare.replace(f".{new}.", f".{old}."))
    return names


def _lazy_float32(name: str, shape: tuple[int, ...], stored: StoredTensor) -> ir.TensorProtocol:
    """The stored tensor as float32: in place where it is, converted each time it is asked for where it is not."""
    if stored.dtype not in DTYPES or torch.Size(shape).numel() != torch.Size(stored.shape).numel():
        raise UserError(
            f"weight '{name}' is {stored.dtype} {stored.shape}; expected F32, F16 or BF16 of shape {shape}",
            hint="do the checkpoint's configuration and its weights belong together?",
        )
    external = ir.ExternalTensor(
        stored.file.name, stored.offset, stored.size_bytes, DTYPES[stored.dtype],
        shape=ir.Shape(shape), name=name, base_dir=stored.file.parent.absolute(),
    )  # fmt: skip
    if stored.dtype == "F32":
        return external
    return ir.LazyTensor(
        lambda: ir.tensor(external.numpy().astype("float32"), name=name),
        ir.DataType.FLOAT, shape=ir.Shape(shape), name=name,
    )  # fmt: skip


def _fold_weight_transposes(model: ir.Model) -> None:
    """Replace Transpose(weight) by a weight that is transposed when read, so that engines need not do it."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or source.name is None or source.const_value is None:
            continue
        weight, permutation = source.const_value, list(node.attributes["perm"].as_ints())
        name = f"{source.name}.transposed{''.join(map(str, permutation))}"
        if name not in model.graph.initializers:
            sizes = weight.shape.numpy()
            shape = ir.Shape([sizes[axis] for axis in permutation])
            read = partial(_transposed, weight, permutation, name)
            lazy = ir.LazyTensor(read, weight.dtype, shape=shape, name=name)
            folded = ir.Value(name=name, shape=shape, type=ir.TensorType(weight.dtype), const_value=lazy)
            model.graph.register_initializer(folded)
        ir.convenience.replace_all_uses_with(node.outputs[0], model.graph.initializers[name])
        model.graph.remove(node, safe=True)
        if not source.uses():
            del model.graph.initializers[source.name]


def _transposed(weight: ir.TensorProtocol, permutation: list[int], name: str) -> ir.TensorProtocol:
    return ir.tensor(weight.numpy().transpose(permutation).copy(), name=name)


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
