"""What the stages of a build do, each in a process of its own: from a checkpoint to compiled, checked engines.

Each function writes its result into `folder`; the folders before the keywords are those of the stages it needs.
The packages that they need are imported where they are used: the process that plans a build needs none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..compress.recipe import Activations, Left, Recipe
from ..runtime.backends import Array, Loading, backend_for
from ..runtime.bundle import HOISTED_INPUTS, SHALLOW_UNET, Component, FileEntry, TensorSpec, describe_files
from ..runtime.errors import BundleError, OutzoomError, UserError
from ..runtime.files import link_or_copy
from ..runtime.packed import PACKED_NAME, open_packed
from ..runtime.segments import SEGMENTS_NAME, Segment
from .checkpoint import PART_OF, Checkpoint
from .mobile import mobile_usability
from .shapes import Shapes, probe_shapes
from .targets import FORMS

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..compress.inputs import Inputs
    from ..compress.ranges import RangeMethod

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
DESCRIPTION = "description.json"
OUTPUT = "output of the module"

Sides = Sequence[Mapping[str, int]]


class OnnxDescription(msgspec.Struct, frozen=True):
    """What the manifest says of a component before it is compiled."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    left: tuple[Left, ...]  # layers that a rule is for, but can't take
    segments: tuple[Segment, ...] = ()  # the ONNX models of a component that is cut, to run in turn

    @property
    def models(self) -> tuple[str, ...]:
        """The files of its ONNX models."""
        return tuple(segment.engine for segment in self.segments) or (MODEL,)


class EngineDescription(msgspec.Struct, frozen=True):
    """Compiled components, and the files of each in the folder of its name."""

    components: dict[str, Component]
    files: dict[str, FileEntry]
    notes: tuple[str, ...]  # for the build log


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


def write_onnx(
    folder: Path, traced: Path, *found: Path,
    checkpoint: Checkpoint, component: str, recipe: Recipe, hoisted: bool, skips: int,
    segments: int, for_onnxruntime: bool, typed: bool,
) -> None:  # fmt: skip
    """The ONNX model of a component with its weights, compressed as the recipe says, in the folder of its name.

    `found` are folders of what the recipe needs to know: statistics of activations, by which blocks are narrowed and
    activations rounded; those from before they were smoothed, if they are; and what a mixed recipe chose.
    `for_onnxruntime`: in the forms that it computes in integers, which are not those of others. `typed`: in those of an
    engine that computes in the graph's types. A hoisted UNet comes in three, each after those whose outputs it takes;
    with `skips`, a shallow one of so many skip connections comes last.
    With `segments` above 1, the whole one is cut into about so many models that run in turn.
    """
    from ..compress.narrow import narrow
    from ..compress.smooth import smooth_activations
    from .calibration import STATISTICS, read_inputs
    from .hoist import hoist
    from .segments import split_evenly
    from .sensitivity import CHOSEN, read_chosen
    from .shallow import split_shallow

    measured = [read_inputs(one) for one in found if (one / STATISTICS).exists()]
    for one in found:
        if (one / CHOSEN).exists():
            recipe = recipe.with_choices(layer.rule for layer in read_chosen(one)[component].values())
    model = load_traced(traced, checkpoint, component, recipe)
    inputs = measured[0] if measured else None
    left: list[Left] = []
    if len(measured) > 1:
        model, left = smooth_activations(model, component, recipe, measured[1])
    if inputs is not None and recipe.narrows(component):
        model, inputs, narrowed = narrow(model, component, recipe, inputs)
        left += narrowed
    if inputs is not None and recipe.activations is not None and recipe.rounds_activations(component):
        model = _rounded(model, inputs, component, recipe, recipe.activations, for_onnxruntime)
    models = {component: model}
    if hoisted:
        split = hoist(model, HOISTED_INPUTS)
        models = {**split.parts, component: split.step}
    if skips:
        cut = split_shallow(models[component], skips)
        models |= {component: cut.whole, SHALLOW_UNET: cut.shallow}
    dynamic = for_onnxruntime and recipe.multiplies_dynamically(component)
    described = {
        name: _write_model(model, component, recipe, inputs, dynamic, typed, folder / name)
        if segments == 1 or name != component
        else _write_segments(
            model, split_evenly(model, segments), component, recipe, inputs, dynamic, typed, folder / name
        )
        for name, model in models.items()
    }
    described[component] = msgspec.structs.replace(described[component], left=(*left, *described[component].left))
    (folder / DESCRIPTION).write_bytes(msgspec.json.encode(described))


def load_traced(traced: Path, checkpoint: Checkpoint, component: str, recipe: Recipe) -> ir.Model:
    """What `trace_component` left in its folder, with the checkpoint's weights, in the form that the recipe is for."""
    from ..compress.angles import angles_apart
    from ..compress.bias import biases_apart
    from ..compress.masks import finite_masks
    from ..compress.pointwise import pointwise_as_products
    from .trace import load_skeleton

    model = load_skeleton(traced / MODEL, checkpoint.weights(PART_OF[component]))
    if recipe.is_fixed_point(component):
        model = finite_masks(angles_apart(model))
    if recipe.pointwise_as_products:
        model = pointwise_as_products(model)
    return biases_apart(model) if recipe.timestep_groups(component) > 1 else model


def _rounded(
    model: ir.Model, inputs: Inputs, component: str, recipe: Recipe, settings: Activations, for_onnxruntime: bool
) -> ir.Model:
    """The model with activations rounded to the ranges that their statistics ask for.

    ONNX Runtime computes a convolution in integers only if it makes them; OpenVINO a product of two activations only if
    both have the code 0 for zero. Where the input of a convolution has another, OpenVINO adds up the weights at each
    start, one by one: the full-size UNet took 4 s to open in place of 1.3.
    """
    from ..compress import activations
    from ..compress.ranges import choose_range

    assert settings.range != "dynamic"  # such a recipe measures nothing for this
    if recipe.is_fixed_point(component):
        return _in_fixed_point(model, inputs, settings.range, recipe.activation_bits(component))
    parts = inputs.by_timestep or (inputs.statistics,)
    better = set[str]() if for_onnxruntime else activations.product_factors(model) | activations.convolved(model)
    centred = {name for name, one in parts[0].items() if settings.symmetric or (name in better and one.low < 0)}
    symmetric_codes = activations.unsigned_symmetric_codes if for_onnxruntime else activations.symmetric_codes
    codes = {}
    for name in parts[0]:
        ranges = [choose_range(part[name], settings.range, name in centred) for part in parts]
        codes[name] = [(symmetric_codes if name in centred else activations.asymmetric_codes)(one) for one in ranges]
    quantized = partial(recipe.computes_in_integers, component)
    return activations.quantize_activations(
        model, codes, quantized, settings.products, for_onnxruntime, inputs.boundaries
    )


def _in_fixed_point(model: ir.Model, inputs: Inputs, method: RangeMethod, bits: int) -> ir.Model:
    """The model with all tensors rounded to the ranges that their statistics ask for."""
    from ..compress.activations import asymmetric_codes, unsigned_symmetric_codes
    from ..compress.fixed_point import fixed_point_tensors, second_factors, to_fixed_point
    from ..compress.ranges import choose_range

    centred = second_factors(model)
    codes = {}
    for name in fixed_point_tensors(model):
        ends = choose_range(inputs.statistics[name], method, name in centred, bits)
        codes[name] = (unsigned_symmetric_codes if name in centred else asymmetric_codes)(ends, bits)
    return to_fixed_point(model, codes, bits)


def _write_segments(
    whole: ir.Model,
    models: list[ir.Model],
    component: str,
    recipe: Recipe,
    inputs: Inputs | None,
    dynamic: bool,
    typed: bool,
    folder: Path,
) -> OnnxDescription:
    """Each of the models in a folder of its number; described as one."""
    from . import segments

    folder.mkdir()
    made: list[OnnxDescription] = []

    def save(model: ir.Model, number: int) -> Path:
        made.append(_write_model(model, component, recipe, inputs, dynamic, typed, folder / str(number)))
        return Path(str(number), MODEL)

    listed = tuple(segments.described(whole, models, save))
    return OnnxDescription(
        inputs=tuple(_spec(value) for value in whole.graph.inputs),
        outputs=tuple(_spec(value) for value in whole.graph.outputs),
        parameters=sum(one.parameters for one in made),
        left=tuple(left for one in made for left in one.left),
        segments=listed,
    )


def _write_model(
    model: ir.Model, component: str, recipe: Recipe, inputs: Inputs | None, dynamic: bool, typed: bool, folder: Path
) -> OnnxDescription:
    import onnx_ir as ir

    from ..compress.cast import cast_weights
    from ..compress.dynamic import multiply_dynamically
    from ..compress.fixed_point import integer_biases
    from ..compress.half import compute_in_float16
    from ..compress.packing import PackedWriter
    from ..compress.weights import compress_weights

    weights = [value.const_value for value in model.graph.initializers.values()]
    parameters = sum(weight.size for weight in weights if weight is not None)
    folder.mkdir()
    writer = PackedWriter(folder / PACKED_NAME, recipe.entropy_coding)
    model, left = compress_weights(model, component, recipe, writer, inputs, typed)
    if dynamic:
        model, floats = multiply_dynamically(model)
        left += floats
    if recipe.is_fixed_point(component):
        model = integer_biases(model)
    if typed and recipe.compute == "fastest":
        model = compute_in_float16(model)
    elif recipe.weights == "float16":
        model = cast_weights(model)
    ir.save(model, folder / MODEL, external_data=WEIGHTS)
    if writer.tensors:
        writer.finish(folder / WEIGHTS, _offsets(folder / MODEL))
    taken, made = (tuple(_spec(v) for v in values) for values in (model.graph.inputs, model.graph.outputs))
    return OnnxDescription(taken, made, parameters, tuple(left))


def _offsets(file: Path) -> dict[str, int]:
    """Where in its weights file an ONNX model has its initializers."""
    import onnx_ir as ir

    weights = ir.load(file).graph.initializers.items()
    return {
        name: value.const_value.offset or 0
        for name, value in weights if isinstance(value.const_value, ir.ExternalTensor)
    }  # fmt: skip


def compile_engine(
    folder: Path, onnx: Path, references: Path, *, component: str, target: str, recipe: Recipe, sides: Sides
) -> None:
    """The engines of a component for a target, refused if they are not as near to the module as the recipe asks.

    `sides` are the numbers of the open dimensions for each of the references.
    """
    described = msgspec.json.decode((onnx / DESCRIPTION).read_bytes(), type=dict[str, OnnxDescription])
    compiled = {
        name: {
            model: backend_for(target).compile(onnx / name / model, (folder / name / model).parent)
            for model in one.models
        }
        for name, one in described.items()
    }
    checked_on = FORMS[target].checked_on or target
    parts = _parts(onnx, compiled, described, checked_on, folder)
    parity_db = _parity_db(parts, references, checked_on, recipe.compute, sides)
    if not parity_db >= recipe.min_psnr_db:
        raise OutzoomError(
            f"{component} for {target} with the recipe '{recipe.name}' has a parity of {parity_db:.1f} dB PSNR; "
            f"the recipe asks for {recipe.min_psnr_db:.1f}",
            hint="use a gentler recipe, or lower min_psnr_db in a recipe file of your own",
        )
    notes = [f"{left.layer} {left.reason}" for model in described.values() for left in model.left]
    components = {}
    for name, one in described.items():
        packed: dict[str, Path] = {}
        for model, engine in compiled[name].items():
            source = (onnx / name / model).with_name(PACKED_NAME)
            weights = backend_for(target).weights_file(engine)
            if source.exists() and weights != engine:
                packed[model] = engine.with_name(PACKED_NAME)
                notes += _pack_weights(source, weights, packed[model])
            if target == "onnxruntime-mobile":
                notes += [f"{name}, mobile usability: {line}" for line in mobile_usability(onnx / name / model)]
        segmented = bool(one.segments)
        components[name] = Component(
            engine=_relative(
                _list_segments(one, compiled[name], packed) if segmented else compiled[name][MODEL], folder
            ),
            inputs=one.inputs,
            outputs=one.outputs,
            parameters=one.parameters,
            parity_psnr_db=round(parity_db, 2) if math.isfinite(parity_db) else None,
            packed=None if segmented or not packed else _relative(packed[MODEL], folder),
        )
    files = {f"{name}/{file}": entry for name in described for file, entry in describe_files(folder / name).items()}
    (folder / DESCRIPTION).write_bytes(msgspec.json.encode(EngineDescription(components, files, tuple(notes))))


def _list_segments(described: OnnxDescription, compiled: Mapping[str, Path], packed: Mapping[str, Path]) -> Path:
    """Write the list of a component's engines that run in turn."""
    folder = next(iter(compiled.values())).parent.parent
    listed = [
        msgspec.structs.replace(
            segment,
            engine=_relative(compiled[segment.engine], folder),
            packed=_relative(packed[segment.engine], folder) if segment.engine in packed else None,
        )
        for segment in described.segments
    ]
    (folder / SEGMENTS_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(listed)))
    return folder / SEGMENTS_NAME


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _pack_weights(source: Path, weights: Path, target: Path) -> list[str]:
    """Put packed weights in the place of an engine's weights file; what there is to say about it."""
    from ..compress.packing import repack

    lost = repack(open_packed(source), weights, target)
    weights.unlink()
    return [f"{name} is stored as the engine has it, which the converter made of it" for name in lost]


def read_engine(folder: Path) -> EngineDescription:
    """What `compile_engine` left in its folder."""
    return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=EngineDescription)


@dataclass(frozen=True)
class Part:
    """An engine that does a part of a component's work."""

    engine: Path
    feeds: tuple[str, ...]
    inputs: tuple[TensorSpec, ...] = ()  # whose open dimensions are set when it is loaded


def _parts(
    onnx: Path,
    compiled: Mapping[str, Mapping[str, Path]],
    described: Mapping[str, OnnxDescription],
    target: str,
    folder: Path,
) -> Iterator[Part]:
    """The engines in turn; or, for one with many weights, engines of its graph's segments, each gone after its use."""
    import onnx_ir as ir

    from .segments import split

    for name, engines in compiled.items():
        for model, engine in engines.items():
            source = onnx / name / model
            graph = ir.load(source)
            segments = split(graph)
            if len(segments) == 1:
                taken = tuple(str(value.name) for value in graph.graph.inputs)
                checked = source if target == "onnxruntime" else engine
                yield Part(checked, taken, () if described[name].segments else described[name].inputs)
                continue
            for segment in segments:
                with TemporaryDirectory(dir=folder) as scratch:
                    link_or_copy(source.with_name(WEIGHTS), Path(scratch, WEIGHTS))
                    ir.save(segment, Path(scratch, MODEL))
                    made = backend_for(target).compile(Path(scratch, MODEL), Path(scratch, "engine"))
                    yield Part(made, tuple(str(value.name) for value in segment.graph.inputs))


def _parity_db(parts: Iterable[Part], references: Path, target: str, compute: str, sides: Sides) -> float:
    """The lowest PSNR of what the parts make, one after another, against what the module made of the same inputs.

    What several parts make under the last one's name, as the whole UNet and the shallow one do, counts each time.
    """
    from .parity import tensor_psnr_db

    probes = [load_arrays(file) for file in sorted(references.glob("*.npz"))]
    made: list[list[dict[str, Array]]] = [[] for _ in probes]
    for part in parts:
        for found, values, numbers in zip(made, probes, sides, strict=True):
            found.append(_run(part, values, target, compute, numbers))
            values |= found[-1]
    return min(
        tensor_psnr_db(values[OUTPUT], one[name])
        for found, values in zip(made, probes, strict=True)
        for name in found[-1] for one in found if name in one
    )  # fmt: skip


def _run(
    part: Part, values: Mapping[str, Array], target: str, compute: str, sides: Mapping[str, int]
) -> dict[str, Array]:
    try:
        engine = backend_for(target).load(part.engine, Loading(compute, part.inputs, sides))
    except BundleError as error:
        raise OutzoomError(f"what was built can't be loaded: {error}", hint="please report this") from error
    try:
        return engine.run({name: values[name] for name in part.feeds})
    finally:
        engine.close()


def load_arrays(file: Path) -> dict[str, Array]:
    """The arrays in an .npz file, by name."""
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


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
