"""The stage that compiles a component for a target and checks its engines against what the checkpoint's module made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ..compress.recipe import Recipe
from ..runtime.backends import Array, Loading, backend_for
from ..runtime.bundle import Component, FileEntry, TensorSpec, describe_files
from ..runtime.errors import BundleError, OutzoomError
from ..runtime.files import link_or_copy
from ..runtime.packed import PACKED_NAME, open_packed
from ..runtime.segments import SEGMENTS_NAME
from .mobile import mobile_usability
from .reading import MODEL, OUTPUT, WEIGHTS, load_arrays
from .targets import FORMS
from .writing import DESCRIPTION, OnnxDescription, read_onnx

Sides = Sequence[Mapping[str, int]]


class EngineDescription(msgspec.Struct, frozen=True):
    """Compiled components, and the files of each in the folder of its name."""

    components: dict[str, Component]
    files: dict[str, FileEntry]
    notes: tuple[str, ...]  # for the build log


def compile_engine(
    folder: Path, onnx: Path, references: Path, *, component: str, target: str, recipe: Recipe, sides: Sides
) -> None:
    """The engines of a component for a target, refused if they are not as near to the module as the recipe asks.

    `sides` are the numbers of the open dimensions for each of the references.
    """
    described = read_onnx(onnx)
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
    notes = [f"{left.layer} {left.reason}" for one in described.values() for left in one.left]
    components = {}
    for name, one in described.items():
        packed, lost = _pack(onnx / name, compiled[name], target)
        notes += lost
        for file in one.models if target == "onnxruntime-mobile" else ():
            notes += [f"{name}, mobile usability: {line}" for line in mobile_usability(onnx / name / file)]
        components[name] = _component(one, compiled[name], packed, parity_db, folder)
    files = {f"{name}/{file}": entry for name in described for file, entry in describe_files(folder / name).items()}
    (folder / DESCRIPTION).write_bytes(msgspec.json.encode(EngineDescription(components, files, tuple(notes))))


def _pack(onnx: Path, compiled: Mapping[str, Path], target: str) -> tuple[dict[str, Path], list[str]]:
    """Put packed weights in the place of the engines' weights files: where they are, and what there is to say of it."""
    from ..compress.packing import repack

    packed: dict[str, Path] = {}
    notes: list[str] = []
    for model, engine in compiled.items():
        source = (onnx / model).with_name(PACKED_NAME)
        weights = backend_for(target).weights_file(engine)
        if source.exists() and weights != engine:
            packed[model] = engine.with_name(PACKED_NAME)
            lost = repack(open_packed(source), weights, packed[model])
            weights.unlink()
            notes += [f"{name} is stored as the engine has it, which the converter made of it" for name in lost]
    return packed, notes


def _component(
    described: OnnxDescription, compiled: Mapping[str, Path], packed: Mapping[str, Path], parity_db: float, folder: Path
) -> Component:
    """What the manifest says of a component; its files are in `folder`."""
    segmented = bool(described.segments)
    engine = _list_segments(described, compiled, packed) if segmented else compiled[MODEL]
    return Component(
        engine=_relative(engine, folder),
        inputs=described.inputs,
        outputs=described.outputs,
        parameters=described.parameters,
        parity_psnr_db=round(parity_db, 2) if math.isfinite(parity_db) else None,
        packed=None if segmented or not packed else _relative(packed[MODEL], folder),
    )


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
