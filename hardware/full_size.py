"""Stable Diffusion 2 inpainting at 512x512, known without a bundle: its layers come with outzoom.

`models/make_workload.py` traces a checkpoint of its configuration and writes them. What a recipe makes of them follows
the recipes in `models/recipes/`; one that changes the graph, as `narrow` does, needs a bundle.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path

import msgspec

from ..runtime.errors import unknown_name
from ..runtime.files import atomic_file
from .workload import Layer, Workload, map_components

FILE = Path(__file__).parent / "workloads" / "sd2-inpainting-512.json"


@dataclass(frozen=True)
class Precision:
    """Bits of weights and of activations in convolutions, linear layers and attention; `kept`: weights left by 2:4."""

    conv: tuple[int, int]
    linear: tuple[int, int]
    attention: tuple[int, int]
    kept: float = 1.0


FLOAT = (32, 32)
HALF = (16, 32)  # the activations are whatever the device computes floats in
RECIPES = {
    "fp32": Precision(FLOAT, FLOAT, FLOAT),
    "fp16": Precision(HALF, HALF, FLOAT),
    "int8": Precision((8, 8), (8, 8), (8, 8)),
    "int4": Precision((8, 8), (4, 32), FLOAT),
    "kmeans4": Precision(HALF, HALF, FLOAT),
    "pruned": Precision(HALF, HALF, FLOAT),
    "sparse24": Precision(HALF, HALF, FLOAT, kept=0.5),
    "w8a16": Precision((8, 16), (8, 16), (16, 16)),  # what phones' published figures were measured with
}


class Stored(msgspec.Struct, frozen=True):
    """The file: for each component a row for each layer, its numbers in the order of `columns`."""

    name: str
    width: int
    height: int
    columns: tuple[str, ...]
    components: dict[str, tuple[tuple[str | int, ...], ...]]


COLUMNS = tuple(field.name for field in fields(Layer) if field.name != "nonzero_fraction")


@cache
def full_size(recipe: str = "fp32") -> Workload:
    """Full-size SD2 inpainting as a recipe makes it; raises UserError for a recipe that is not in RECIPES."""
    if recipe not in RECIPES:
        raise unknown_name("recipe for a prediction without a bundle", recipe, RECIPES)
    precision = RECIPES[recipe]
    changed = map_components(read_workload(FILE), lambda layers: at_precision(layers, precision))
    return replace(changed, recipe=recipe, compute="float32" if recipe == "fp32" else "fastest")


@cache
def read_workload(file: Path) -> Workload:
    """What `write_workload` wrote."""
    stored = msgspec.json.decode(file.read_bytes(), type=Stored)
    components = {
        name: tuple(Layer(**dict(zip(stored.columns, row, strict=True))) for row in rows)  # type: ignore[arg-type]
        for name, rows in stored.components.items()
    }
    return Workload(stored.name, "fp32", stored.width, stored.height, components)


def write_workload(workload: Workload, file: Path) -> None:
    """Write a workload of dense layers, a layer a line."""
    rows = {
        name: tuple(astuple(layer)[: len(COLUMNS)] for layer in layers) for name, layers in workload.components.items()
    }
    data = msgspec.json.encode(Stored(workload.name, workload.width, workload.height, COLUMNS, rows))
    with atomic_file(file) as partial:
        partial.write_bytes(data.replace(b"],[", b"],\n[") + b"\n")


def at_precision(layers: tuple[Layer, ...], precision: Precision) -> tuple[Layer, ...]:
    """Layers of a float graph with the types that a recipe gives them."""

    def changed(layer: Layer) -> Layer:
        if not layer.is_product:
            return layer
        kind = "conv" if layer.kind == "depthwise" else layer.kind
        weight_bits, input_bits = getattr(precision, kind)
        kept = 1.0 if kind == "attention" else precision.kept
        return replace(layer, weight_bits=weight_bits, input_bits=input_bits, nonzero_fraction=kept)

    return tuple(changed(layer) for layer in layers)
