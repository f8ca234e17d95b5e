"""The stage that writes a component's ONNX models with their weights, compressed as the recipe says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ..compress.recipe import Activations, Left, Recipe
from ..runtime.bundle import HOISTED_INPUTS, SHALLOW_UNET, TensorSpec
from ..runtime.errors import OutzoomError
from ..runtime.packed import PACKED_NAME
from ..runtime.segments import Segment
from .checkpoint import Checkpoint
from .reading import MODEL, WEIGHTS, load_traced

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..compress.inputs import Inputs
    from ..compress.ranges import RangeMethod

DESCRIPTION = "description.json"


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


def read_onnx(folder: Path) -> dict[str, OnnxDescription]:
    """What `write_onnx` left in its folder, by component."""
    return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=dict[str, OnnxDescription])


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


def _spec(value: ir.Value) -> TensorSpec:
    if value.name is None or value.shape is None or value.dtype is None:
        raise OutzoomError(f"the tensor {value} has no name, shape or type")
    shape = tuple(side if isinstance(side, int) else str(side.value) for side in value.shape)
    return TensorSpec(value.name, shape, np.dtype(value.dtype.numpy()).name)
