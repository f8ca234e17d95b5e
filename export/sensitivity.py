"""Mixed recipes: how much each layer matters, and which of a recipe's choices it gets.

For each component:  try every choice on every layer: sizes, errors of weights -> with one layer compressed at a time,
run the component on recorded inputs: its sensitivity. Then one choice for all components, under the recipe's budget.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx_ir as ir

from ..compress.layers import find_layers
from ..compress.mixed import Option, choose
from ..compress.recipe import Recipe, Rule
from ..compress.statistics import even_choice
from ..compress.weights import approximate
from ..runtime.backends import Array
from ..runtime.errors import UserError
from .checkpoint import Checkpoint
from .reading import MODEL, WEIGHTS, load_arrays, load_traced
from .segments import described, in_turn, open_mapped, split

TRIED = "tried.json"
SENSITIVITY = "sensitivity.json"
CHOSEN = "mixed.json"
LOWEST_PSNR_DB = -120.0  # of an output that is ruined
LAYER_BYTES = 700  # what files say of a layer, in the header of its packed weights and in mixed.json
# The size of a compiled graph, without weights, to that of the traced one: at most, of those measured. An OpenVINO IR
# is XML. Rounding activations about doubles it.
GRAPH_SIZE = {"onnxruntime": 1.0}
LARGEST_GRAPH_SIZE = 3.5


class Tried(msgspec.Struct, frozen=True):
    """What the choices for a layer come to: its bytes, and the squared error of its weights, by choice."""

    operator: str
    parameters: int
    size_bytes: tuple[int, ...]
    squared_errors: tuple[float, ...]

    @property
    def probe(self) -> int:
        """The choice that sensitivity is measured with: the one in the middle by its error."""
        order = sorted(range(len(self.squared_errors)), key=lambda index: self.squared_errors[index])
        return order[len(order) // 2]


class ComponentTried(msgspec.Struct, frozen=True):
    """The layers of a component, by name, the bytes of its other weights, and those of the graph as it was traced."""

    component: str
    layers: dict[str, Tried]
    other_bytes: int
    graph_bytes: int

    def fixed_bytes(self, target: str, rounded: bool) -> int:
        """About what a bundle for a target takes beside the layers that there are choices for, at most."""
        growth = GRAPH_SIZE.get(target, LARGEST_GRAPH_SIZE) * (2 if rounded else 1)
        return self.other_bytes + math.ceil(growth * self.graph_bytes) + LAYER_BYTES * len(self.layers)


class Chosen(msgspec.Struct, frozen=True):
    """A layer of a mixed bundle: the rule that it got, what it takes, and the component's PSNR with this layer alone.

    `psnr_db` is that of each choice; None where the output stays the same.
    """

    rule: Rule
    size_bytes: int
    psnr_db: tuple[float | None, ...]


def try_choices(folder: Path, traced: Path, *, checkpoint: Checkpoint, component: str, recipe: Recipe) -> None:
    """The size and the error of each layer's weight by each choice that the recipe leaves."""
    model = load_traced(traced, checkpoint, component, recipe)
    weights = [value.const_value for value in model.graph.initializers.values()]
    rest = sum(weight.nbytes for weight in weights if weight is not None)
    tried = {}
    for layer in find_layers(model):
        options = recipe.options(component, layer.op_type, layer.name)
        exact = layer.tensor(layer.matrix())
        rest -= exact.nbytes
        if not options or recipe.mixed is None or options[0] not in recipe.mixed.choices:
            rest += exact.size * (2 if recipe.weights == "float16" else 4)  # what a rule says of it is at most that
            continue
        made = [approximate(layer, option, recipe.entropy_coding) for option in options]
        errors = tuple(float(np.square(weight - exact, dtype=np.float64).sum()) for weight, _ in made)
        tried[layer.name] = Tried(layer.op_type, exact.size, tuple(size for _, size in made), errors)
    if component == "text_encoder":
        rest += sum(file.stat().st_size for file in checkpoint.tokenizer_folder.iterdir())
    found = ComponentTried(component, tried, rest, (traced / MODEL).stat().st_size)
    (folder / TRIED).write_bytes(msgspec.json.encode(found))


def measure_sensitivity(
    folder: Path, traced: Path, recorded: Path, *tried: Path,
    checkpoint: Checkpoint, component: str, recipe: Recipe, target: str,
) -> None:  # fmt: skip
    """Of each layer the error that it brings into the component's output for each squared error of its weight.

    The output's error is its mean square over the squared range of the exact output, as in its PSNR. Refuses a budget
    that can't be met.
    """
    assert recipe.mixed is not None
    components = [_read_tried(one) for one in tried]
    check_budget(recipe, components, target)
    layers = next(one.layers for one in components if one.component == component)
    files = sorted(recorded.glob(f"{component}-*.npz"))
    samples = [files[index] for index in even_choice(len(files), recipe.mixed.samples)]
    model = load_traced(traced, checkpoint, component, recipe)
    found: dict[str, float] = {}
    with TemporaryDirectory(dir=folder) as scratch:
        for layer, error in _errors(model, layers, recipe, component, samples, Path(scratch)):
            of_weight = layers[layer].squared_errors[layers[layer].probe]
            found[layer] = error / of_weight if of_weight > 0 else 0.0
    (folder / SENSITIVITY).write_bytes(msgspec.json.encode(found))


def _errors(
    model: ir.Model, layers: Mapping[str, Tried], recipe: Recipe, component: str, samples: list[Path], scratch: Path
) -> Iterator[tuple[str, float]]:
    """For each layer, by name: the error of the output when its weight alone is that of the probe.

    The network is run from the layer's segment on: what comes before stays the same.
    """
    segments = split(model)
    steps = described(model, segments, lambda segment, number: _save_open(segment, scratch / str(number)))
    values = [load_arrays(sample) for sample in samples]
    exact = [in_turn(steps).run(one) for one in values]
    for number, (segment, step) in enumerate(zip(segments, steps, strict=True)):
        engine, rest = open_mapped(Path(step.engine)), in_turn(steps[number + 1 :])
        for layer in find_layers(segment):
            if layer.name in layers:
                probe = recipe.options(component, layer.op_type, layer.name)[layers[layer.name].probe]
                weight = {str(layer.value.name): approximate(layer, probe, entropy_coding=False)[0]}
                made = [rest.run({**one, **engine.run({**_only(step.inputs, one), **weight})}) for one in values]
                yield layer.name, float(np.mean([_error(a, b) for a, b in zip(exact, made, strict=True)]))
        values = [_only(step.kept, {**one, **engine.run(_only(step.inputs, one))}) for one in values]
        engine.close()


def _save_open(segment: ir.Model, folder: Path) -> Path:
    """Write a segment whose layers' weights can be given anew when it runs."""
    folder.mkdir()
    weights = [layer.value for layer in find_layers(segment)]
    segment.graph.inputs.extend(weights)
    ir.save(segment, folder / MODEL, external_data=WEIGHTS)
    del segment.graph.inputs[len(segment.graph.inputs) - len(weights) :]
    return folder / MODEL


def _only(names: Iterable[str], values: Mapping[str, Array]) -> dict[str, Array]:
    return {name: values[name] for name in names if name in values}


def _error(exact: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The mean squared error of the output over its squared range: the PSNR of it, not in dB."""
    from .parity import tensor_psnr_db

    ((name, output),) = exact.items()
    return float(10 ** (-max(tensor_psnr_db(output, found[name]), LOWEST_PSNR_DB) / 10))


def _read_tried(folder: Path) -> ComponentTried:
    return msgspec.json.decode((folder / TRIED).read_bytes(), type=ComponentTried)


def check_budget(recipe: Recipe, components: Iterable[ComponentTried], target: str) -> int:
    """The bytes that the layers may take; raises UserError for a budget that can't be met, with the least that can."""
    components, mixed = list(components), recipe.mixed
    assert mixed is not None
    tried = [layer for one in components for layer in one.layers.values()]
    other = sum(one.fixed_bytes(target, recipe.rounds_activations(one.component)) for one in components)
    least = sum(min(layer.size_bytes) for layer in tried)
    parameters = sum(layer.parameters for layer in tried)
    if mixed.budget_mb is None:
        budget, asked = int(mixed.bits * parameters / 8), f"{mixed.bits:g} bits for each weight"
        smallest = f"{math.ceil(800 * least / parameters) / 100:g} bits"
    else:
        budget, asked = int(mixed.budget_mb * 1e6) - other, f"{mixed.budget_mb:g} MB"
        smallest = f"{math.ceil((least + other) / 1e4) / 100:g} MB"
    if budget < least:
        raise UserError(
            f"the budget of {asked} can't be met: with the smallest choice for every layer it is {smallest}",
            hint="raise the budget, or give the recipe smaller choices",
        )
    return budget


def choose_mixed(folder: Path, *measured: Path, recipe: Recipe, target: str) -> None:
    """One of the recipe's choices for each layer; `measured` are what was tried, then the sensitivities."""
    assert recipe.mixed is not None
    half = len(measured) // 2
    components = [_read_tried(one) for one in measured[:half]]
    sensitivities = [
        msgspec.json.decode((one / SENSITIVITY).read_bytes(), type=dict[str, float]) for one in measured[half:]
    ]
    names = [(one.component, name) for one in components for name in one.layers]
    tried = [layer for one in components for layer in one.layers.values()]
    weights = [known[name] for one, known in zip(components, sensitivities, strict=True) for name in one.layers]
    errors = [[weight * error for error in layer.squared_errors] for weight, layer in zip(weights, tried, strict=True)]
    options = [list(map(Option, layer.size_bytes, of_layer)) for layer, of_layer in zip(tried, errors, strict=True)]
    chosen: dict[str, dict[str, Chosen]] = {one.component: {} for one in components}
    picks = choose(options, check_budget(recipe, components, target))
    for (component, name), layer, of_layer, index in zip(names, tried, errors, picks, strict=True):
        choice = recipe.options(component, layer.operator, name)[index]
        rule = msgspec.structs.replace(choice, components=(component,), layers=(glob.escape(name),))
        quality = tuple(round(-10 * math.log10(error), 2) if error > 0 else None for error in of_layer)
        chosen[component][name] = Chosen(rule, layer.size_bytes[index], quality)
    (folder / CHOSEN).write_bytes(msgspec.json.encode(chosen))


def read_chosen(folder: Path) -> dict[str, dict[str, Chosen]]:
    """What `choose_mixed` left in its folder: by component, then by layer."""
    return msgspec.json.decode((folder / CHOSEN).read_bytes(), type=dict[str, dict[str, Chosen]])
