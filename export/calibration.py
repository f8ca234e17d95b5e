"""Calibration: what activations are like on the very pictures that a zoom paints.

Our own runtime zooms out of pictures, and what it feeds to each component is kept: every timestep of every keyframe,
with and without the prompt. Each component is then run on its feeds, a segment of its graph after another, and its
activations are measured as they come; none is kept but those that cross from a segment to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compress.activations import TIMESTEP, activations
from ..compress.fixed_point import fixed_point_tensors
from ..compress.inputs import MOST_COLUMNS, Covariance, Inputs, channel_covariance_file, covariance_file
from ..compress.layers import find_layers
from ..compress.recipe import Recipe
from ..compress.statistics import TensorStatistics
from ..runtime.backends import Array, Engine
from ..runtime.errors import OutzoomError
from ..runtime.images import load_image
from ..runtime.inpainting import Painting
from ..runtime.zoom import Zoom
from .checkpoint import Checkpoint
from .reading import MODEL, WEIGHTS, load_arrays, load_traced
from .recipes import calibration_pictures
from .shapes import about_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from .plan import BundlePlan

SCALE = 0.5  # of each keyframe in the next: the widest border there is
STATISTICS = "statistics.npz"
BOUNDARIES = "boundaries.npy"
COVARIANCES = "covariances"
SEPARATOR = "/"
Statistics = dict[str, TensorStatistics]
ROWS = 2**14  # inputs of a layer, over all samples, that its covariance is of


class _Recorded:
    """An engine that keeps what it is fed with, an .npz file for each run."""

    def __init__(self, engine: Engine, folder: Path, component: str) -> None:
        self.engine, self.folder, self.component, self.runs = engine, folder, component, 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name."""
        self.runs += 1
        arrays: dict[str, Any] = dict(feeds)
        np.savez(self.folder / f"{self.component}-{self.runs:05}.npz", **arrays)
        return self.engine.run(feeds)

    def rest(self) -> None:
        """Let the engine rest."""
        self.engine.rest()

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


def record_trajectories(folder: Path, *engines: Path, bundle: BundlePlan, recipe: Recipe) -> None:
    """What the components are fed with while the bundle of these engines zooms, an .npz file for each run."""
    from .build import assemble
    from .segments import segmented

    settings = recipe.calibration
    pictures = calibration_pictures(recipe)
    with TemporaryDirectory(dir=folder) as scratch:
        assembled = assemble(bundle, Path(scratch), engines)

        @cache  # one that is closed and opened again goes on counting
        def open_engine(component: str, batch: int) -> Engine:
            segments = segmented(assembled.engine(component), Path(scratch) / f"{component} in segments")
            return _Recorded(segments, folder, component)

        with Zoom(assembled, open_engine=open_engine) as zoom:
            for index in range(max(len(settings.prompts), len(pictures))):  # both take turns
                prompt = settings.prompts[index % len(settings.prompts)]
                picture = load_image(pictures[index % len(pictures)], size=zoom.size)
                painting = Painting(steps=settings.steps, guidance=settings.guidance, seed=settings.seed + index)
                keyframes = zoom.keyframes(picture, prompt, SCALE, painting)
                for _ in range(settings.keyframes + 1):  # the first is the picture
                    next(keyframes)


def measure_activations(
    folder: Path, traced: Path, recorded: Path, unsmoothed: Path | None = None, *,
    checkpoint: Checkpoint, component: str, recipe: Recipe, sides: Mapping[str, int],
) -> None:  # fmt: skip
    """Statistics of a component's activations over all that was recorded for it.

    With those of an earlier run of this, `unsmoothed`, the activations are those of the smoothed model. `sides` are the
    numbers of the dimensions that the graph leaves open.
    """
    from ..compress.smooth import smooth_activations
    from .segments import needed_later, split

    model = load_traced(traced, checkpoint, component, recipe)
    if unsmoothed is not None:
        model, _ = smooth_activations(model, component, recipe, read_inputs(unsmoothed))
    rounds = recipe.rounds_activations(component)
    products = rounds and recipe.activations is not None and recipe.activations.products
    axes = activations(model, partial(recipe.measures, component), products, outputs=rounds)
    if recipe.is_fixed_point(component):
        axes |= fixed_point_tensors(model)
    samples = sorted(recorded.glob(f"{component}-*.npz"))
    if not samples:
        raise OutzoomError(f"nothing was recorded for {component}", hint="please report this")
    wanted = partial(_covariances, component=component, recipe=recipe, folder=folder / COVARIANCES)
    held_bytes = {node: sum(one.size_bytes for one in found.values()) for node, found in wanted(model).items()}

    def measured_bytes(node: ir.Node) -> int:
        made_bytes = sum(about_bytes(value, sides) for value in node.outputs if value.name in axes)
        return held_bytes.get(node, 0) + made_bytes

    boundaries, group_of = _timestep_groups(samples, recipe.timestep_groups(component))
    all_samples: Statistics = {}
    of_group: list[Statistics] = [{} for _ in range(len(boundaries) + 1)] if boundaries else []
    books = {name: [all_samples, *of_group[group : group + 1]] for name, group in group_of.items()}
    segments = split(model, more_bytes=measured_bytes)
    (folder / COVARIANCES).mkdir()
    with TemporaryDirectory(dir=folder) as scratch:
        for segment, needed in zip(segments, needed_later(segments), strict=True):
            covariances = {file: one for found in wanted(segment).values() for file, one in found.items()}
            samples = _measure_segment(segment, samples, axes, books, covariances.values(), needed, Path(scratch))
            for file, covariance in covariances.items():
                np.save(file, covariance.mean())
    _save_statistics(folder / STATISTICS, all_samples)
    for number, book in enumerate(of_group):
        _save_statistics(folder / f"{number}-{STATISTICS}", book)
    np.save(folder / BOUNDARIES, np.array(boundaries))


def _timestep_groups(samples: list[Path], groups: int) -> tuple[list[float], dict[str, int]]:
    """Timesteps that divide those of the samples into even groups, and the group of each sample by its file's name."""
    if groups == 1:
        return [], {sample.name: 0 for sample in samples}
    timesteps = {}
    for sample in samples:
        with np.load(sample, allow_pickle=False) as stored:
            timesteps[sample.name] = float(stored[TIMESTEP][0])
    distinct = np.unique(list(timesteps.values()))
    groups = min(groups, len(distinct))
    firsts = [len(distinct) * number // groups for number in range(1, groups)]
    boundaries = [float(distinct[first - 1] + distinct[first]) / 2 for first in firsts]
    return boundaries, {name: int(np.searchsorted(boundaries, one, "right")) for name, one in timesteps.items()}


def _save_statistics(file: Path, statistics: Statistics) -> None:
    arrays: dict[str, Any] = {
        f"{name}{SEPARATOR}{part}": array for name, one in statistics.items() for part, array in one.arrays().items()
    }
    np.savez(file, **arrays)


def _read_statistics(file: Path) -> Statistics:
    found: dict[str, dict[str, Any]] = {}
    with np.load(file, allow_pickle=False) as stored:
        for key in stored.files:
            name, _, part = key.rpartition(SEPARATOR)
            found.setdefault(name, {})[part] = stored[key]
    return {name: TensorStatistics.of_arrays(arrays) for name, arrays in found.items()}


def _covariances(
    model: ir.Model, component: str, recipe: Recipe, folder: Path
) -> dict[ir.Node, dict[Path, Covariance]]:
    """The covariances to measure of the inputs of a model's layers, by the layers' nodes and the files they go to."""
    found: dict[ir.Node, dict[Path, Covariance]] = {}
    for layer in find_layers(model):
        rule = recipe.rule(component, layer.op_type, layer.name)
        needed = rule is not None and rule.needs_covariance and layer.op_type != "Gather"
        files = {}
        if needed and layer.columns <= MOST_COLUMNS:
            files[covariance_file(folder, layer.name)] = Covariance(layer)
        if recipe.structured_entry(component, layer.name) and layer.matrix_shape[-1] <= MOST_COLUMNS:
            files[channel_covariance_file(folder, layer.name)] = Covariance(layer, of_channels=True)
        if files:
            found[layer.node] = files
    return found


def read_inputs(folder: Path) -> Inputs:
    """What `measure_activations` left in its folder."""
    boundaries = tuple(np.load(folder / BOUNDARIES, allow_pickle=False).tolist())
    parts = range(len(boundaries) + 1 if boundaries else 0)
    by_timestep = tuple(_read_statistics(folder / f"{part}-{STATISTICS}") for part in parts)
    return Inputs(_read_statistics(folder / STATISTICS), folder / COVARIANCES, by_timestep, boundaries)


def _measure_segment(
    segment: ir.Model, samples: list[Path], axes: Mapping[str, int], books: Mapping[str, list[Statistics]],
    covariances: Iterable[Covariance], needed: set[str], scratch: Path,
) -> list[Path]:  # fmt: skip
    """Run a segment on every sample, and measure what it makes; the next one's samples, which are in `scratch`.

    `books` are, by a sample's name, the statistics that it goes into.
    """
    engine = _open_segment(segment, axes, scratch)
    inputs = [str(value.name) for value in segment.graph.inputs]
    for sample in samples:
        values = load_arrays(sample)
        made = engine.run({name: values[name] for name in inputs})
        fresh = made if sample.parent == scratch else {**values, **made}
        for name, array in fresh.items():
            for book in books[sample.name] if name in axes else ():
                if name not in book:
                    book[name] = TensorStatistics.empty(array.shape[axes[name]])
                book[name].add(array, axes[name])
        values |= made
        for covariance in covariances:
            covariance.add(values[covariance.layer.input_name], ROWS // len(samples))
        if needed:
            kept: dict[str, Any] = {name: value for name, value in values.items() if name in needed}
            np.savez(scratch / sample.name, **kept)
    engine.close()
    return [scratch / sample.name for sample in samples]


def _open_segment(segment: ir.Model, axes: Mapping[str, int], scratch: Path) -> Engine:
    """An engine of a segment that also puts out what is measured."""
    import onnx_ir as ir

    from .segments import open_mapped

    outputs = {str(value.name) for value in segment.graph.outputs}
    for node in segment.graph:
        segment.graph.outputs.extend(
            value for value in node.outputs if value.name in axes and value.name not in outputs
        )
    ir.save(segment, scratch / MODEL, external_data=WEIGHTS)
    return open_mapped(scratch / MODEL)
