"""The stages that read the checkpoint: a component's graph as it is traced, and what its module makes of inputs.

Each stage runs in a process of its own and writes its result into `folder`; the folders before the keywords are those
of the stages that it needs. The packages that it needs are imported where they are used: the process that plans a build
needs none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compress.recipe import Recipe
from ..runtime.backends import Array
from ..runtime.errors import UserError
from .checkpoint import PART_OF, Checkpoint
from .shapes import Shapes, probe_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
OUTPUT = "output of the module"


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


def load_arrays(file: Path) -> dict[str, Array]:
    """The arrays in an .npz file, by name."""
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


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
