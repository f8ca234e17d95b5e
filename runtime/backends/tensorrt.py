"""TensorRT on NVIDIA GPUs: the bundle has the ONNX model, of which an engine is built on the device, once.

`tensorrt` is the package of JetPack, for Jetson; `tensorrt_rtx` is that of PyPI, for GeForce and RTX.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import BundleError, MissingPackageError, UserError
from ..files import atomic_directory, link_or_copy, sha256_of
from .cuda import Gpu, cuda, gpu
from .protocol import Loading
from .tensorrt_build import (
    FRUGAL_WORKSPACE_MIB,
    RTX,
    BuildOptions,
    Model,
    build_engine,
    capability_names,
    options_of,
)
from .tensorrt_engine import TensorRtEngine
from .tensorrt_origin import (
    ENGINE_NAME,
    KERNELS_NAME,
    KEY_DIGITS,
    Origin,
    check_origin,
    read_origin,
    shown_capability,
    write_origin,
)

OLDEST_MAJOR = {"tensorrt": 10, RTX: 1}  # TensorRT 8 has no int64, no strong types and no INT4
WHERE_FROM = {
    "tensorrt": "JetPack brings it: sudo apt install nvidia-jetpack",
    RTX: "pip install 'outzoom[tensorrt-rtx]'",
}
DEVICE = re.compile(r"(?P<kind>GPU|DLA)(?::(?P<number>\d{1,2}))?\Z")


@functools.cache
def _package(name: str) -> Any:
    """The package; raises UserError where it, or a library that it needs, is missing or too old."""
    target = name.replace("_", "-")
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = MissingPackageError(error.name or name, target, f"the target '{target}'")
        missing.hint = WHERE_FROM[name]
        raise missing from error
    except (ImportError, OSError) as error:  # a library that it is linked with
        message = f"the package '{name}' is installed, but a library that it needs is not: {error}"
        raise UserError(message, hint=WHERE_FROM[name]) from error
    version = str(package.__version__)
    if int(version.split(".")[0]) < OLDEST_MAJOR[name]:
        raise UserError(
            f"the package '{name}' is of version {version}; {OLDEST_MAJOR[name]} or newer is needed",
            hint="JetPack 6 and newer have TensorRT 10",
        )
    return package


@dataclass(frozen=True)
class TensorRt:
    """The backend of the targets `tensorrt` and `tensorrt-rtx`; `package` is the one that builds and runs engines.

    Without `options` they are those of the environment.
    """

    package: str
    options: BuildOptions | None = None

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Take model.onnx and its external weights as they are: engines are built where they run."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(onnx.parent.glob(onnx.name + "*")):
            link_or_copy(file, folder / file.name)
        return folder / onnx.name

    def weights_file(self, engine: Path) -> Path:
        """The external data of model.onnx."""
        return engine.with_name(f"{engine.name}.data")

    def build_ahead(self, model: Model, engine: Path, capabilities: Sequence[str]) -> None:
        """Build the engine of a model for GPUs that are not here, into a new folder: tensorrt_rtx alone can do that.

        Raises UserError for a compute capability that the package does not build for.
        """
        package, options = _package(self.package), self.options or options_of()
        if self.package != RTX:
            known = "it builds for the GPU of its machine alone"
            raise UserError(f"{self.package} builds no engines ahead: {known}", hint="compile the bundle on the device")
        data = build_engine(package, model, options, capabilities)
        origin = self._origin(model, options, tuple(capabilities), None)
        with atomic_directory(engine.parent, ENGINE_NAME) as partial:
            (partial / engine.name).write_bytes(data)
            write_origin(partial / engine.name, origin)

    def load(self, engine: Path, loading: Loading) -> TensorRtEngine:
        """Open the engine of an ONNX model, or build it first if the cache has none for this GPU, driver and version.

        A file that `build_ahead` made is opened as it is; raises BundleError if it is for other GPUs or another
        version, UserError where the package, the driver or the GPU is missing.
        """
        package = _package(self.package)
        number, dla_core = parse_device(loading.device)
        here = gpu(number)
        if engine.name == ENGINE_NAME:
            check_origin(engine, self.package, self.version(), here)
            kernels = loading.cache / KERNELS_NAME if loading.cache and self.package == RTX else None
            return TensorRtEngine(package, engine, cuda(number), {}, not loading.frugal, kernels)
        check_capability(package, here)
        model = Model(engine, loading.inputs, loading.sides, loading.compute)
        options = replace(self.options or options_of(), dla_core=dla_core)
        if loading.frugal and options.workspace_mib is None:
            options = replace(options, workspace_mib=FRUGAL_WORKSPACE_MIB)
        device = cuda(number)
        if loading.cache is not None:
            built = self._built(model, options, here, loading.cache)
            kernels = built.with_name(KERNELS_NAME) if self.package == RTX else None
            return TensorRtEngine(package, built, device, model.shapes, not loading.frugal, kernels)
        with TemporaryDirectory(prefix="outzoom-", ignore_cleanup_errors=True) as folder:
            built = self._built(model, options, here, Path(folder))
            return TensorRtEngine(package, built, device, model.shapes, not loading.frugal)

    def _built(self, model: Model, options: BuildOptions, here: Gpu, cache: Path) -> Path:
        """The engine in the cache, built now unless it is there, whole and for this device."""
        origin = self._origin(model, options, (shown_capability(here),), here)
        engine = cache / origin.key / ENGINE_NAME
        if is_origin(engine, origin):
            return engine
        package = _package(self.package)
        capabilities = [name for name in origin.capabilities if name in capability_names(package)]
        data = build_engine(package, model, options, capabilities, cache)
        with atomic_directory(engine.parent, ENGINE_NAME) as partial:
            (partial / ENGINE_NAME).write_bytes(data)
            write_origin(partial / ENGINE_NAME, origin)
        return engine

    def _origin(self, model: Model, options: BuildOptions, capabilities: tuple[str, ...], here: Gpu | None) -> Origin:
        shapes = {name: "x".join(map(str, shape)) for name, shape in model.shapes.items()}
        return Origin(
            self.package, self.version(), capabilities,
            here.name if here else None, here.driver if here else None, model.compute,
            {
                **options.described(), "model": sha256_of(model.onnx)[:KEY_DIGITS],
                **{f"shape of {name}": shape for name, shape in shapes.items()},
            },
        )  # fmt: skip

    def absent(self) -> str | None:
        """Why engines can't run on this machine, if so."""
        try:
            check_capability(_package(self.package), gpu())
        except UserError as error:
            return f"{error}; {error.hint}"
        return None

    def version(self) -> str:
        """The installed version."""
        return str(_package(self.package).__version__)


def check_capability(package: Any, here: Gpu) -> None:
    """Raise UserError for a GPU that the package has no kernels for, such as Hopper and tensorrt_rtx.

    It builds engines on such a GPU, and then does not open them. GPUs newer than all that it names it does open.
    """
    known = capability_names(package)
    newest = max((tuple(map(int, name.split("."))) for name in known), default=(0, 0))
    if known and shown_capability(here) not in known and here.capability < newest:
        raise UserError(
            f"{package.__name__} {package.__version__} does not run on '{here.name}', of compute capability "
            f"{shown_capability(here)}",
            hint=f"it runs on {', '.join(known)} and newer; the target 'tensorrt' takes the others",
        )


def is_origin(engine: Path, origin: Origin) -> bool:
    """Whether an engine is there, whole, and belongs to what is asked for."""
    try:
        return engine.exists() and read_origin(engine) == origin
    except BundleError:
        return False


def parse_device(device: str | None) -> tuple[int, int | None]:
    """The GPU and the deep learning accelerator that a text like "GPU:1" or "DLA:0" names.

    >>> parse_device("DLA")
    (0, 0)
    """
    found = DEVICE.match(device or "GPU")
    if found is None:
        raise UserError(f"TensorRT runs on GPU and DLA, not on '{device}'", hint="for example --device GPU:0 or DLA:0")
    number = int(found["number"] or 0)
    return (number, None) if found["kind"] == "GPU" else (0, number)
