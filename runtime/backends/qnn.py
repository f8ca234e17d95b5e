"""Snapdragon's Hexagon (HTP) through the QNN plugin of ONNX Runtime: an ONNX model around context binaries.

A context binary is made for one SoC and one version of the package: see qnn_origin.py. On x86-64 the package has no
device, and computes what the device would, slowly.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from ..bundle import COPY_AGAIN
from ..errors import BundleError, MissingPackageError, OutzoomError, UserError
from ..files import atomic_directory
from .onnxruntime import OnnxRuntime, OnnxRuntimeEngine
from .protocol import Loading
from .qnn_origin import PACKAGE, SOCS, Origin, Soc, check_origin, device_soc, write_origin

PROVIDER = "QNNExecutionProvider"
CONTEXTS = "contexts"  # in the cache of an engine
EMULATED = SOCS["SM8650"]  # where nothing else is asked for
ON_CPU = {"op_type": dict.fromkeys(("Cos", "Einsum", "Sin"), "cpu")}  # the angles of timesteps: see compress/angles.py
PURPOSE = "each target 'onnxruntime-qnn*'"
FIXED_SIDES = "build with one --size, and without --batch"


@dataclass(frozen=True)
class Qnn:
    """The backend of `onnxruntime-qnn-*`, whose context binaries are made ahead for a SoC.

    Without one, of `onnxruntime-qnn`, which makes them on the device.
    """

    soc: Soc | None = None

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Make context binaries of what the HTP can compute; the rest stays ONNX, for the CPU."""
        if self.soc is None:
            return OnnxRuntime().compile(onnx, folder)
        folder.mkdir(parents=True, exist_ok=True)
        return _make_contexts(onnx, folder / onnx.name, self.soc)

    def weights_file(self, engine: Path) -> Path:
        """The external data of model.onnx; the engine itself where a context has the weights in its own order."""
        return OnnxRuntime().weights_file(engine) if self.soc is None else engine

    def load(self, engine: Path, loading: Loading) -> OnnxRuntimeEngine:
        """Open what `compile` made, on the HTP or in its emulation; what is made here is kept in the cache.

        Raises BundleError if it was made for another SoC or by another version, or has sides that are still open.
        """
        if loading.device not in (None, "NPU"):
            raise UserError(
                f"engines of {PACKAGE} run on the HTP, not on '{loading.device}'",
                hint="leave out --device, or build for onnxruntime",
            )
        if any(isinstance(side, str) for spec in loading.inputs for side in spec.shape):
            raise BundleError(f"'{engine}' has open sides, which the HTP has not", hint=FIXED_SIDES)
        if self.soc is not None:
            check_origin(engine, device_soc(), _version())
            return _opened(engine, self.soc)
        if loading.cache is not None:
            return _opened(_kept(engine, loading.cache), None)
        with TemporaryDirectory(prefix="outzoom-", ignore_cleanup_errors=True) as scratch:
            return _opened(_make_contexts(engine, Path(scratch, engine.name), None), None)

    def absent(self) -> str | None:
        """Why engines can't run on this machine, if so; on x86-64 they are emulated."""
        try:
            _devices()
        except OutzoomError as error:
            return f"{error}; {error.hint}"
        return None

    def version(self) -> str:
        """The installed version of the plugin, and by it that of QNN."""
        _package()
        return _version()


def _opened(engine: Path, soc: Soc | None) -> OnnxRuntimeEngine:
    options = _session_options(soc, {})
    try:
        return OnnxRuntimeEngine(_package().InferenceSession(engine, options))
    except Exception as error:  # the package raises types of its own, one for each kind of failure
        raise BundleError(f"QNN can't load '{engine}': {error}", hint=COPY_AGAIN) from error


def _make_contexts(onnx: Path, engine: Path, soc: Soc | None) -> Path:
    """Write the ONNX model around context binaries of another, those beside it, and what they were made for."""
    with TemporaryDirectory(prefix="outzoom-", ignore_cleanup_errors=True) as scratch:
        affinity = Path(scratch, "op_affinity.json")
        affinity.write_bytes(msgspec.json.encode(ON_CPU))
        options = _session_options(soc, {"op_affinity": str(affinity)})
        for key, value in (("enable", "1"), ("embed_mode", "0"), ("file_path", str(engine))):
            options.add_session_config_entry(f"ep.context_{key}", value)
        try:
            _package().InferenceSession(onnx, options)
        except Exception as error:  # the package raises types of its own, one for each kind of failure
            raise OutzoomError(f"QNN can't compile '{onnx}': {error}") from error
    if not engine.exists():
        hint = "use a recipe that rounds all of it, such as 'a16w8'"
        raise OutzoomError(f"QNN left all of '{onnx}' to the CPU", hint=hint)
    write_origin(engine, Origin(_soc_name(soc), _version()))
    return engine


def _kept(engine: Path, cache: Path) -> Path:
    """An engine's contexts for this device in the cache, made now or before."""
    kept = cache / f"{CONTEXTS}-{_soc_name(None)}" / engine.name
    if kept.exists():
        try:
            check_origin(kept, _soc_name(None), _version())
            return kept
        except BundleError:  # damaged, or another version's: it is made again
            pass
    with atomic_directory(kept.parent, engine.name) as partial:
        _make_contexts(engine, partial / engine.name, None)
    return kept


def _soc_name(soc: Soc | None) -> str:
    """The name of a SoC; without one, of this device, or what is emulated."""
    return soc.name if soc is not None else device_soc() or EMULATED.name


def _session_options(soc: Soc | None, more: Mapping[str, str]) -> Any:
    """Those of a session on a SoC: without one, the device's own, or where there is none the emulation of one."""
    options = _package().SessionOptions()
    options.log_severity_level = 3
    settings = {"backend_type": "htp", "htp_graph_finalization_optimization_mode": "3", "htp_performance_mode": "burst"}
    settings |= more
    if soc is None and device_soc() is None:
        soc = EMULATED
    if soc is not None:
        settings |= {"soc_model": str(soc.model), "htp_arch": str(soc.htp_arch)}
    options.add_provider_for_devices(_devices(), settings)
    return options


@functools.cache
def _devices() -> list[Any]:
    """The device of the plugin, which is registered once in a process."""
    ort = _package()
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise MissingPackageError(PACKAGE, "qnn", PURPOSE) from error
    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        raise OutzoomError(f"{PACKAGE} finds no device here", hint="it needs a Snapdragon, or x86-64 for its emulation")
    npus = [device for device in found if device.device.type == ort.OrtHardwareDeviceType.NPU]
    return (npus or found)[:1]


def _package() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # nothing that runs here reports home
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("onnxruntime", "qnn", PURPOSE) from error
    return onnxruntime


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError as error:
        raise MissingPackageError(PACKAGE, "qnn", PURPOSE) from error
