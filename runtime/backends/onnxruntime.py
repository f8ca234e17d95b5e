"""ONNX Runtime on the CPU: the engine file is the ONNX model itself, its weights beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import COPY_AGAIN
from ..errors import BundleError, MissingPackageError, UserError
from ..files import link_or_copy
from .protocol import Array, Loading


def package(target: str = "onnxruntime") -> Any:
    """The package, for a target; raises MissingPackageError."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # nothing that runs here reports home
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("onnxruntime", "onnxruntime", f"the target '{target}'") from error
    return onnxruntime


class OnnxRuntimeEngine:
    """An inference session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))

    def rest(self) -> None:
        """Nothing: a session's arena shrinks in a run only, or not at all."""

    def close(self) -> None:
        """Drop the session."""
        self._session = None


@dataclass(frozen=True)
class OnnxRuntime:
    """The backend of the target `onnxruntime`."""

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Take model.onnx and its external weights as they are."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(onnx.parent.glob(onnx.name + "*")):
            link_or_copy(file, folder / file.name)
        return folder / onnx.name

    def weights_file(self, engine: Path) -> Path:
        """The external data of model.onnx."""
        return engine.with_name(f"{engine.name}.data")

    def load(self, engine: Path, loading: Loading) -> OnnxRuntimeEngine:
        """Load the model; the CPU provider computes in float32 whatever is asked for, and nothing is kept."""
        if loading.device not in (None, "CPU"):
            raise UserError(
                f"engines of ONNX Runtime run on the CPU, not on '{loading.device}'",
                hint="leave out --device, or build for openvino-gpu, openvino-npu or tensorrt",
            )
        return OnnxRuntimeEngine(self.session(engine, self.options(loading)))

    def options(self, loading: Loading) -> Any:
        """The options of a session.

        In a frugal one weights stay in their file, which is mapped, and no buffer outlives its use: layers are somewhat
        slower, since no weight is brought into the order that they compute in; opening takes no time.
        """
        ort = package()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        for name in {side for spec in loading.inputs for side in spec.shape if isinstance(side, str)}:
            options.add_free_dimension_override_by_name(name, loading.sides[name])
        if loading.frugal:
            options.enable_cpu_mem_arena = False
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    def session(self, engine: Path, options: Any) -> Any:
        """The package's own inference session of an engine."""
        try:
            return package().InferenceSession(engine, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the package raises types of its own, one for each kind of failure
            raise BundleError(f"ONNX Runtime can't load '{engine}': {error}", hint=COPY_AGAIN) from error

    def absent(self) -> None:
        """It runs on every processor."""

    def version(self) -> str:
        """The installed version."""
        return str(package().__version__)
