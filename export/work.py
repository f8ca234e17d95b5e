"""What the stages of a build do, each in a process of its own: from a checkpoint to compiled, checked engines.

Each function writes its result into `folder`; the folders before the keywords are those of the stages it needs.
The packages that they need are imported where they are used: the process that plans a build needs none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..runtime.backends import backend_for
from ..runtime.bundle import Component, FileEntry, TensorSpec, describe_files
from ..runtime.errors import BundleError, OutzoomError, UserError
from ..runtime.files import link_or_copy
from .checkpoint import PART_OF, Checkpoint
from .recipes import Recipe
from .shapes import Shapes, probe_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
DESCRIPTION = "description.json"
ENGINE_FOLDER = "engine"
OUTPUT = "output of the module"

Sides = Sequence[Mapping[str, int]]


class OnnxDescription(msgspec.Struct, frozen=True):
    """What the manifest says of a component before it is compiled."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int


class EngineDescription(msgspec.Struct, frozen=True):
    """A compiled component and the files in its folder, named relative to it."""

    component: Component
    files: dict[str, FileEntry]


def trace_component(folder: Path, *, checkpoint: Checkpoint, component: str, shapes: Shapes) -> None:
    """The graph of a component, without weights."""
    from .trace import save_skeleton, trace

    with _fitting(checkpoint, component):
        save_skeleton(trace(checkpoint, component, shapes), folder / MODEL)


def run_module(folder: Path, *, checkpoint: Checkpoint, component: str, shapes: Shapes) -> None:
    """Inputs of a component at each size, and what the checkpoint's module makes of them."""
    from .parity import probe, reference_output

    for index, concrete in enumerate(probe_shapes(checkpoint, component, shapes)):
        feeds = probe(checkpoint, component, concrete)
        with _fitting(checkpoint, component):
            output = reference_output(checkpoint, component, feeds)
        arrays: dict[str, Any] = {**feeds, OUTPUT: output}
        np.savez(folder / f"{index}.npz", **arrays)


def write_onnx(folder: Path, traced: Path, *, checkpoint: Checkpoint, component: str, recipe: Recipe) -> None:
    """The ONNX model of a component with its weights, compressed as the recipe says."""
    import onnx_ir as ir

    from ..compress.cast import cast_weights
    from .trace import load_skeleton

    model = load_skeleton(traced / MODEL, checkpoint.weights(PART_OF[component]))
    parameters = sum(weight.size for v in model.graph.initializers.values() if (weight := v.const_value) is not None)
    if recipe.weights == "float16":
        model = cast_weights(model)
    ir.save(model, folder / MODEL, external_data=WEIGHTS)
    inputs, outputs = (tuple(_spec(v) for v in values) for values in (model.graph.inputs, model.graph.outputs))
    description = OnnxDescription(inputs, outputs, parameters)
    (folder / DESCRIPTION).write_bytes(msgspec.json.encode(description))


def compile_engine(
    folder: Path, onnx: Path, references: Path, *, component: str, target: str, recipe: Recipe, sides: Sides
) -> None:
    """The engine of a component for a target, refused if it is not as near to the module as the recipe asks.

    `sides` are the numbers of the open dimensions for each of the references.
    """
    described = msgspec.json.decode((onnx / DESCRIPTION).read_bytes(), type=OnnxDescription)
    engine = backend_for(target).compile(onnx / MODEL, folder / ENGINE_FOLDER)
    parts = _parts(onnx, engine, target, described.inputs, folder)
    parity_db = min(
        _parity_db(parts, file, target, recipe.compute, numbers)
        for file, numbers in zip(sorted(references.glob("*.npz")), sides, strict=True)
    )
    if not parity_db >= recipe.min_psnr_db:
        raise OutzoomError(
            f"{component} for {target} with the recipe '{recipe.name}' has a parity of {parity_db:.1f} dB PSNR; "
            f"the recipe asks for {recipe.min_psnr_db:.1f}",
            hint="use a gentler recipe, or lower min_psnr_db in a recipe file of your own",
        )
    found = Component(
        engine=f"{component}/{engine.relative_to(folder / ENGINE_FOLDER).as_posix()}",
        inputs=described.inputs,
        outputs=described.outputs,
        parameters=described.parameters,
        parity_psnr_db=round(parity_db, 2) if math.isfinite(parity_db) else None,
    )
    files = {f"{component}/{name}": entry for name, entry in describe_files(folder / ENGINE_FOLDER).items()}
    (folder / DESCRIPTION).write_bytes(msgspec.json.encode(EngineDescription(found, files)))


def read_engine(folder: Path) -> EngineDescription:
    """What `compile_engine` left in its folder."""
    return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=EngineDescription)


@dataclass(frozen=True)
class Part:
    """An engine that does a part of a component's work."""

    engine: Path
    feeds: tuple[str, ...]
    inputs: tuple[TensorSpec, ...] = ()  # whose open dimensions are set when it is loaded


def _parts(onnx: Path, engine: Path, target: str, inputs: tuple[TensorSpec, ...], folder: Path) -> list[Part]:
    """The engine itself; or, when its weights are many, engines of the same graph's segments, for less memory."""
    import onnx_ir as ir

    from .segments import split

    segments = split(ir.load(onnx / MODEL))
    if len(segments) == 1:
        return [Part(engine, tuple(spec.name for spec in inputs), inputs)]
    parts = []
    for index, segment in enumerate(segments):
        source = folder / "segments" / str(index)
        source.mkdir(parents=True)
        link_or_copy(onnx / WEIGHTS, source / WEIGHTS)
        ir.save(segment, source / MODEL)
        compiled = backend_for(target).compile(source / MODEL, source / ENGINE_FOLDER)
        parts.append(Part(compiled, tuple(str(value.name) for value in segment.graph.inputs)))
    return parts


def _parity_db(parts: list[Part], reference: Path, target: str, compute: str, sides: Mapping[str, int]) -> float:
    """The PSNR of what the parts make, one after another, against what the module made of the same inputs."""
    from .parity import tensor_psnr_db

    with np.load(reference, allow_pickle=False) as stored:
        values = dict(stored)
    expected = values.pop(OUTPUT)
    made = {}
    for part in parts:
        try:
            engine = backend_for(target).load(part.engine, compute, part.inputs, sides)
        except BundleError as error:
            raise OutzoomError(f"what was built can't be loaded: {error}", hint="please report this") from error
        try:
            made = engine.run({name: values[name] for name in part.feeds})
        finally:
            engine.close()
        values |= made
    (output,) = made.values()
    return tensor_psnr_db(expected, output)


def _spec(value: ir.Value) -> TensorSpec:
    if value.name is None or value.shape is None or value.dtype is None:
        raise OutzoomError(f"the tensor {value} has no name, shape or type")
    shape = tuple(side if isinstance(side, int) else str(side.value) for side in value.shape)
    return TensorSpec(value.name, shape, np.dtype(value.dtype.numpy()).name)


@contextmanager
def _fitting(checkpoint: Checkpoint, component: str) -> Iterator[None]:
    """Say of what diffusers raises for a configuration and weights that do not fit that this is so."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        if "allocate memory" in str(error):  # PyTorch's word for it is a RuntimeError
            raise MemoryError from error
        raise UserError(
            f"{component} can't be made from '{checkpoint.path}': {error}",
            hint="do its configuration and its weights belong together?",
        ) from error
