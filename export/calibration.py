"""Calibration: what activations are like on the very pictures that a zoom paints.

Our own runtime zooms out of pictures, and what it feeds to each component is kept: every timestep of every keyframe,
with and without the prompt. Each component is then run on its feeds, a segment of its graph after another, and its
activations are measured as they come; none is kept but those that cross from a segment to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compress.inputs import (
    MOST_COLUMNS,
    Inputs,
    channel_covariance_file,
    channel_rows,
    covariance_file,
    input_rows,
)
from ..compress.layers import Layer, find_layers
from ..compress.recipe import Recipe
from ..compress.statistics import TensorStatistics
from ..runtime.backends import Array, backend_for
from ..runtime.errors import OutzoomError
from ..runtime.images import load_image
from ..runtime.inpainting import Painting
from ..runtime.zoom import Zoom
from .checkpoint import PART_OF, Checkpoint
from .recipes import calibration_pictures
from .work import MODEL, WEIGHTS

if TYPE_CHECKING:
    import onnx_ir as ir

    from .plan import BundlePlan

SCALE = 0.5  # of each keyframe in the next: the widest border there is
STATISTICS = "statistics.npz"
COVARIANCES = "covariances"
SEPARATOR = "/"

Feeds = dict[str, Array]
Rows = tuple[Layer, Callable[[Layer, Array], Array]]  # a layer, and what makes rows of its inputs


def record_trajectories(folder: Path, *engines: Path, bundle: BundlePlan, recipe: Recipe) -> None:
    """What the components are fed with while the bundle of these engines zooms, an .npz file for each run."""
    from .build import assemble

    settings = recipe.calibration
    pictures = calibration_pictures(recipe)
    counts: dict[str, int] = {}

    def keep(component: str, feeds: Feeds) -> None:
        counts[component] = counts.get(component, 0) + 1
        arrays: dict[str, Any] = feeds
        np.savez(folder / f"{component}-{counts[component]:05}.npz", **arrays)

    with TemporaryDirectory(dir=folder) as scratch, Zoom(assemble(bundle, Path(scratch), engines), on_run=keep) as zoom:
        for index in range(max(len(settings.prompts), len(pictures))):  # both take turns
            prompt = settings.prompts[index % len(settings.prompts)]
            picture = load_image(pictures[index % len(pictures)], size=zoom.size)
            painting = Painting(steps=settings.steps, guidance=settings.guidance, seed=settings.seed + index)
            keyframes = zoom.keyframes(picture, prompt, SCALE, painting)
            for _ in range(settings.keyframes + 1):  # the first is the picture
                next(keyframes)


def measure_activations(
    folder: Path, traced: Path, recorded: Path, *, checkpoint: Checkpoint, component: str, recipe: Recipe
) -> None:
    """Statistics of a component's activations over all that was recorded for it."""
    from ..compress.activations import activations
    from .segments import split
    from .trace import load_skeleton

    model = load_skeleton(traced / MODEL, checkpoint.weights(PART_OF[component]))
    rounds = recipe.rounds_activations(component)
    products = rounds and recipe.activations is not None and recipe.activations.products
    axes = activations(model, partial(recipe.measures, component), products, outputs=rounds)
    samples = sorted(recorded.glob(f"{component}-*.npz"))
    if not samples:
        raise OutzoomError(f"nothing was recorded for {component}", hint="please report this")
    measured: dict[str, TensorStatistics] = {}
    (folder / COVARIANCES).mkdir()
    with TemporaryDirectory(dir=folder) as scratch:
        segments = split(model)
        for segment in segments:
            rows = _rows(segment, component, recipe, folder / COVARIANCES)
            found = _measure_segment(
                segment, axes, rows, samples, measured, Path(scratch), is_last=segment is segments[-1]
            )
            for file, covariance in found.items():
                np.save(file, covariance)
            samples = [Path(scratch) / sample.name for sample in samples]
    arrays = {
        f"{name}{SEPARATOR}{part}": array for name, one in measured.items() for part, array in one.arrays().items()
    }
    np.savez(folder / STATISTICS, **arrays)  # type: ignore[arg-type]


def _rows(segment: ir.Model, component: str, recipe: Recipe, folder: Path) -> dict[Path, Rows]:
    """Of what a covariance is measured in a segment, by the file that it goes to."""
    found: dict[Path, Rows] = {}
    for layer in find_layers(segment):
        if _has_covariance(layer, component, recipe):
            found[covariance_file(folder, layer.name)] = (layer, input_rows)
        if recipe.structured_entry(component, layer.name) and layer.matrix_shape[-1] <= MOST_COLUMNS:
            found[channel_covariance_file(folder, layer.name)] = (layer, channel_rows)
    return found


def _has_covariance(layer: Layer, component: str, recipe: Recipe) -> bool:
    rule = recipe.rule(component, layer.op_type, layer.name)
    return rule is not None and rule.needs_covariance and layer.columns <= MOST_COLUMNS and layer.op_type != "Gather"


def read_inputs(folder: Path) -> Inputs:
    """What `measure_activations` left in its folder."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(folder / STATISTICS, allow_pickle=False) as stored:
        for key in stored.files:
            name, _, part = key.rpartition(SEPARATOR)
            found.setdefault(name, {})[part] = stored[key]
    statistics = {name: TensorStatistics.of_arrays(arrays) for name, arrays in found.items()}
    return Inputs(statistics, folder / COVARIANCES)


def _measure_segment(
    segment: ir.Model, axes: Mapping[str, int], rows: Mapping[Path, Rows], samples: list[Path],
    measured: dict[str, TensorStatistics], scratch: Path, is_last: bool,
) -> dict[Path, Array]:  # fmt: skip
    """Run a segment on every sample, measure what it makes, and leave the samples of the next one in `scratch`.

    The covariances of `rows`, by their files.
    """
    import onnx_ir as ir

    crossing = {str(value.name) for value in segment.graph.outputs}
    for node in segment.graph:
        segment.graph.outputs.extend(
            value for value in node.outputs if value.name in axes and value.name not in crossing
        )
    ir.save(segment, scratch / MODEL, external_data=WEIGHTS)
    engine = backend_for("onnxruntime").load(scratch / MODEL, "float32", (), {})
    inputs = [str(value.name) for value in segment.graph.inputs]
    sums: dict[Path, Array] = {}
    counts: dict[Path, int] = {}
    for sample in samples:
        with np.load(sample, allow_pickle=False) as stored:
            feeds = dict(stored)
        made = engine.run({name: feeds[name] for name in inputs})
        fresh = {} if sample.parent == scratch else {name: feeds[name] for name in axes if name in feeds}
        for name, array in {**fresh, **made}.items():
            if name in axes:
                if name not in measured:
                    measured[name] = TensorStatistics.empty(array.shape[axes[name]])
                measured[name].add(array, axes[name])
        for file, (layer, chosen) in rows.items():
            values = chosen(layer, {**feeds, **made}[layer.input_name])
            sums[file] = sums.get(file, 0) + values.T @ values
            counts[file] = counts.get(file, 0) + len(values)
        if not is_last:
            kept: dict[str, Any] = {**feeds, **{name: made[name] for name in crossing}}
            np.savez(scratch / sample.name, **kept)
    engine.close()
    return {file: total / np.float32(counts[file]) for file, total in sums.items()}
