"""The workload of a bundle, of ONNX files, or of the full-size model that comes with outzoom."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..runtime import Bundle
from ..runtime.errors import UserError
from ..runtime.shapes import Size, dimensions
from .graph import Graph
from .lower import layers_of
from .onnx_graph import read_onnx
from .openvino_graph import read_openvino
from .workload import Workload


def bundle_workload(bundle: Bundle, size: Size | None = None) -> Workload:
    """The layers of a bundle's components at one of its sizes, by default the first.

    Raises UserError for a size that the bundle does not have, and as `read_graph` and `layers_of` do.
    """
    manifest = bundle.manifest
    chosen = size or manifest.sizes[0]
    if chosen not in manifest.sizes:
        shown = ", ".join(f"{width}x{height}" for width, height in manifest.sizes)
        raise UserError(f"the bundle '{bundle.path}' has no size {chosen[0]}x{chosen[1]}; it has {shown}")
    sides = dimensions(chosen, manifest.vae_scale_factor)
    components = {name: layers_of(read_graph(bundle.engine(name), sides)) for name in manifest.components}
    compute: Literal["float32", "fastest"] = "float32" if manifest.recipe.compute == "float32" else "fastest"
    names = (manifest.source.name, manifest.recipe.name)
    return Workload(*names, *chosen, components, compute, manifest.target, file=bundle.path.resolve().name)


def graph_workload(file: Path, name: str = "unet", sides: dict[str, int] | None = None) -> Workload:
    """The layers of one graph, as the only component `name` of a workload without a picture."""
    components = {name: layers_of(read_graph(file, sides or {}))}
    return Workload(file.stem, "as given", 0, 0, components, file=file.name)


def read_graph(file: Path, sides: dict[str, int]) -> Graph:
    """The graph of an ONNX file or an OpenVINO IR; raises UserError for any other, or one that is damaged."""
    if file.suffix == ".onnx":
        return read_onnx(file, sides)
    if file.suffix == ".xml":
        return read_openvino(file)
    raise UserError(f"'{file}' is no graph that can be read", hint="graphs are .onnx files and OpenVINO's .xml files")
