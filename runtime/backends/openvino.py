"""OpenVINO on one of Intel's devices: the engine file is its IR, the weights in a .bin beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..bundle import COPY_AGAIN
from ..errors import BundleError, MissingPackageError, UserError
from ..machine import forget_mapped
from ..shapes import resolve
from .openvino_operations import check_operations
from .protocol import Array, Loading

DEVICES = {"CPU": "the processor", "GPU": "Intel's graphics driver", "NPU": "Intel's NPU driver"}
DEVICE_PATTERN = re.compile(r"(?:(?:AUTO|HETERO)(?::(?P<list>.+))?|(?P<one>[^:,]+))\Z")


def _package() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("openvino", "openvino", "the target 'openvino-cpu'") from error
    return openvino


class OpenVinoEngine:
    """A compiled model and one inference request."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs = [output.any_name for output in compiled.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name (copied out of the request's buffers, which the next run reuses)."""
        self._request.infer({name: np.ascontiguousarray(value) for name, value in feeds.items()}, share_inputs=True)
        return {name: np.array(self._request.get_tensor(name).data) for name in self._outputs}

    def rest(self) -> None:
        """Let go of what is between the layers."""
        self._compiled.release_memory()

    def close(self) -> None:
        """Drop the request, and with it the compiled model."""
        self._request = self._compiled = None


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
        check_operations(model, self.device)
        try:
            ov.save_model(model, engine, compress_to_fp16=False)
        except RuntimeError as error:  # a full disk, for one; its streams do not tell
            raise OSError(f"OpenVINO can't write '{engine}': {error}") from error
        _mark_compressed_weights(engine)
        return engine

    def weights_file(self, engine: Path) -> Path:
        """The .bin of an IR."""
        return engine.with_suffix(".bin")

    def load(self, engine: Path, loading: Loading) -> OpenVinoEngine:
        """Compile for the device, in float32 or in the type that the device does fastest (bf16 or fp16)."""
        compiled = self.compiled(engine, loading)
        forget_mapped(self.weights_file(engine))  # what is computed with are copies in another order
        return OpenVinoEngine(compiled)

    def compiled(self, engine: Path, loading: Loading, more: Mapping[str, str] | None = None) -> Any:
        """The package's own compiled model, with `more` options; what it keeps in the cache has no weights."""
        core, device = _package().Core(), loading.device or self.device
        check_device(core.available_devices, device)
        options = {"PERFORMANCE_HINT": "LATENCY", **(more or {})}
        if (precision := _precision(core, device, loading.compute)) is not None:
            options["INFERENCE_PRECISION_HINT"] = precision
        if loading.cache is not None:
            options |= {"CACHE_DIR": str(loading.cache), "CACHE_MODE": "OPTIMIZE_SIZE"}
        try:
            if not any(isinstance(side, str) for spec in loading.inputs for side in spec.shape):
                return core.compile_model(engine, device, options)
            model = core.read_model(engine)
            model.reshape({spec.name: list(resolve(spec.shape, loading.sides)) for spec in loading.inputs})
            return core.compile_model(model, device, options)
        except RuntimeError as error:
            message = f"OpenVINO can't compile '{engine}' for {device}: {error}"
            raise BundleError(message, hint=COPY_AGAIN) from error

    def absent(self) -> str | None:
        """That there is no such device, if so."""
        try:
            check_device(_package().Core().available_devices, self.device)
        except UserError as error:
            return f"{error}; {error.hint}"
        return None

    def version(self) -> str:
        """The installed version."""
        return str(_package().__version__)


def check_device(available: list[str], device: str) -> None:
    """Raises UserError for a device that OpenVINO doesn't know or doesn't see on this machine.

    AUTO and HETERO may name theirs: 'HETERO:NPU,CPU'.
    """
    found = DEVICE_PATTERN.match(device)
    named = [] if found is None else (found["list"] or found["one"] or "").split(",")
    for name in named if found is None or found["one"] or found["list"] else []:
        if (kind := name.partition(".")[0]) not in DEVICES:
            raise UserError(
                f"OpenVINO runs on CPU, GPU and NPU, not on '{name}'",
                hint="for example --device GPU, --device AUTO or --device HETERO:NPU,CPU",
            )
        if not any(one == name or one.partition(".")[0] == name for one in available):
            raise UserError(
                f"OpenVINO sees no {name} on this machine; it sees {', '.join(available) or 'no device'}",
                hint=f"is there one? It needs {DEVICES[kind]}; --device CPU runs the same engines on the processor",
            )
    if found is None:
        raise UserError(f"'{device}' is no device of OpenVINO", hint="for example --device GPU or --device AUTO")


def _precision(core: Any, device: str, compute: str) -> str | None:
    """What floats are computed in: said explicitly for a single device, each device's own choice for several."""
    if compute == "float32":
        return "f32"
    kind = device.partition(".")[0]
    if kind != "CPU":
        return "f16" if kind in ("GPU", "NPU") else None
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return next((hint for name, hint in (("BF16", "bf16"), ("FP16", "f16")) if name in able), "f32")


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
