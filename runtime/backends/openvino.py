"""OpenVINO on one of Intel's devices: the engine file is its IR, the weights in a .bin beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..bundle import COPY_AGAIN, TensorSpec
from ..errors import BundleError, MissingPackageError
from ..machine import forget_mapped
from ..shapes import resolve
from .protocol import Array


def _package() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("openvino", "openvino", "the target 'openvino-cpu'") from error
    return openvino


class OpenVinoEngine:
    """A compiled model and one inference request."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = [output.any_name for output in compiled.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name (copied out of the request's buffers, which the next run reuses)."""
        self._request.infer({name: np.ascontiguousarray(value) for name, value in feeds.items()}, share_inputs=True)
        return {name: np.array(self._request.get_tensor(name).data) for name in self._outputs}

    def close(self) -> None:
        """Drop the request, and with it the compiled model."""
        self._request = None


@dataclass(frozen=True)
class OpenVino:
    """The backend of the `openvino-*` targets."""

    device: str

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Convert to IR; weights keep the type that they have in the ONNX model."""
        ov = _package()
        folder.mkdir(parents=True, exist_ok=True)
        engine = folder / "openvino_model.xml"
        model = ov.Core().read_model(onnx)
        try:
            ov.save_model(model, engine, compress_to_fp16=False)
        except RuntimeError as error:  # a full disk, for one; its streams do not tell
            raise OSError(f"OpenVINO can't write '{engine}': {error}") from error
        _mark_compressed_weights(engine)
        return engine

    def weights_file(self, engine: Path) -> Path:
        """The .bin of an IR."""
        return engine.with_suffix(".bin")

    def load(
        self,
        engine: Path,
        compute: str,
        inputs: Sequence[TensorSpec],
        sides: Mapping[str, int],
        frugal: bool = False,
        cache: Path | None = None,
    ) -> OpenVinoEngine:
        """Compile for the device, in float32 or in the type that the device does fastest (bf16 or fp16)."""
        compiled = self.compiled(engine, compute, inputs, sides, cache)
        forget_mapped(self.weights_file(engine))  # what is computed with are copies in another order
        return OpenVinoEngine(compiled)

    def compiled(
        self,
        engine: Path,
        compute: str,
        inputs: Sequence[TensorSpec],
        sides: Mapping[str, int],
        cache: Path | None = None,
    ) -> Any:
        """The package's own compiled model of an engine; what it keeps in the cache has no weights."""
        ov = _package()
        options = {"PERFORMANCE_HINT": "LATENCY"}
        if compute == "float32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if cache is not None:
            options |= {"CACHE_DIR": str(cache), "CACHE_MODE": "OPTIMIZE_SIZE"}
        core = ov.Core()
        try:
            if not any(isinstance(side, str) for spec in inputs for side in spec.shape):
                return core.compile_model(engine, self.device, options)
            model = core.read_model(engine)
            model.reshape({spec.name: list(resolve(spec.shape, sides)) for spec in inputs})
            return core.compile_model(model, self.device, options)
        except RuntimeError as error:
            message = f"OpenVINO can't compile '{engine}' for {self.device}: {error}"
            raise BundleError(message, hint=COPY_AGAIN) from error

    def version(self) -> str:
        """The installed version."""
        return str(_package().__version__)


def _mark_compressed_weights(file: Path) -> None:
    """Tell the IR that the conversion of a float16 weight is its decompression.

    Unmarked, OpenVINO makes every weight float32 when it loads the model and only then what it computes in: of the
    full-size UNet that took 5.7 GB in place of 3.5, and 14 s in place of 3.5.
    """
    tree = ElementTree.parse(file)
    layers = {layer.get("id"): layer for layer in tree.iterfind("layers/layer")}
    sources = {edge.get("to-layer"): layers[edge.get("from-layer")] for edge in tree.iterfind("edges/edge")}
    for number, layer in layers.items():
        data = sources[number].find("data") if layer.get("type") == "Convert" else None
        if data is not None and data.get("element_type") == "f16" and sources[number].get("type") == "Const":
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(1, info)  # after <data>
            ElementTree.SubElement(info, "attribute", {"name": "decompression", "version": "0"})
    tree.write(file)
