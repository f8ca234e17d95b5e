"""ONNX Runtime on phones and in browsers: the engine file is in its own format, .ort, and has its weights inside.

Beside it lies what a reduced build of ONNX Runtime has to contain: its operators, and the types that they work on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutzoomError
from ..files import atomic_file
from .onnxruntime import OnnxRuntime, OnnxRuntimeEngine, package
from .protocol import Loading

TARGET = "onnxruntime-mobile"
ENGINE_NAME = "model.ort"
OPERATORS_NAME = "required_operators_and_types.config"
MOST_BYTES = 2**31 - 1  # of a flatbuffer, which the format is
# Convolutions in blocks as wide as the vectors of the processor that converts; float32 in place of float16 weights.
LEFT_OUT = ("NchwcTransformer", "FuseFp16InitializerToFp32NodeTransformer")
# Float16 weights that would be larger than this in float32, which doubles the file, are cast in every run instead.
MOST_FOLDED_BYTES = 2**16
MOST_FOLDED = "optimization.constant_folding_max_output_size_in_bytes"


@dataclass(frozen=True)
class OnnxRuntimeMobile:
    """The backend of the target `onnxruntime-mobile`."""

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Optimize the graph for the CPU of any device and write it as an .ort file.

        Integers stay integers; float16 weights stay so but beside those of four bits, whose scales have to be folded:
        what ONNX Runtime 1.32 makes of scales that are cast in the run is wrong. Raises OutzoomError for weights that
        such a file can't hold.

        Source: onnxruntime/tools/convert_onnx_models_to_ort.py, style "Fixed", platform "arm".
        """
        size_bytes = sum(file.stat().st_size for file in onnx.parent.glob(onnx.name + "*"))
        if size_bytes > MOST_BYTES:
            raise OutzoomError(
                f"'{onnx}' takes {size_bytes / 1e9:.2f} GB with its weights; an .ort file holds {MOST_BYTES / 1e9:.2f}",
                hint="use a recipe of 16 bits or fewer, or cut the UNet with --segments",
            )
        folder.mkdir(parents=True, exist_ok=True)
        engine, operators = folder / ENGINE_NAME, folder / OPERATORS_NAME
        _convert(onnx, engine, {MOST_FOLDED: str(MOST_FOLDED_BYTES)})
        _write_operators(engine, operators)
        if "MatMulNBits" in operators.read_text("utf-8"):
            _convert(onnx, engine, {})
            _write_operators(engine, operators)
        return engine

    def weights_file(self, engine: Path) -> Path:
        """The engine itself."""
        return engine

    def load(self, engine: Path, loading: Loading) -> OnnxRuntimeEngine:
        """Load the engine as it is: ONNX Runtime does not optimize an .ort file again."""
        return OnnxRuntime().load(engine, loading)

    def absent(self) -> None:
        """It runs on every processor."""

    def version(self) -> str:
        """The installed version."""
        return str(package(TARGET).__version__)


def _convert(onnx: Path, engine: Path, entries: Mapping[str, str]) -> None:
    ort = package(TARGET)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(engine)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # int8 need not become uint8
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(LEFT_OUT))
    except Exception as error:  # the package raises types of its own, one for each kind of failure
        raise OutzoomError(f"ONNX Runtime can't write '{engine}': {error}", hint="is the disk full?") from error


def _write_operators(engine: Path, target: Path) -> None:
    """What `--include_ops_by_config` of ONNX Runtime's build takes, without the paths of the machine that converts."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)  # it says that the file is there
    with atomic_file(target) as partial:
        create_config_from_models([engine], partial, enable_type_reduction=True)
        lines = partial.read_text("utf-8").splitlines()
        partial.write_text("".join(f"{line}\n" for line in lines if not line.startswith("#")), "utf-8")
