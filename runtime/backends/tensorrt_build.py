"""Building TensorRT engines of ONNX models: for the GPU that is here, or ahead of time for GPUs that are not.

The same code serves `tensorrt`, which JetPack brings, and `tensorrt_rtx`: their Python interfaces are alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..bundle import TensorSpec
from ..errors import BundleError, UserError
from ..files import atomic_file
from ..shapes import resolve

RTX = "tensorrt_rtx"
TIMING_NAME, DLA_REPORT_NAME = "timing.cache", "dla.json"
WORKSPACE_VARIABLE, SPARSE_VARIABLE = "OUTZOOM_TENSORRT_WORKSPACE_MIB", "OUTZOOM_TENSORRT_SPARSE"
FRUGAL_WORKSPACE_MIB = 256
KEPT_MESSAGES = 20
WAS_IT_OURS = 'is the model one that "outzoom export-all --target tensorrt" made?'


@dataclass(frozen=True)
class BuildOptions:
    """How the builder is to work.

    `workspace_mib` is the most memory that a layer may take to work in, None for all that the device has; with `sparse`
    it tries kernels that skip the zeros of 2:4 sparse weights; `dla_core` is the Jetson's deep learning accelerator
    that takes the layers which it can, the GPU taking the others.
    """

    workspace_mib: int | None = None
    sparse: bool = True
    dla_core: int | None = None

    def described(self) -> dict[str, str]:
        """The options as texts, for the name of an engine."""
        return {"workspace_mib": str(self.workspace_mib), "sparse": str(self.sparse), "dla_core": str(self.dla_core)}


def options_of(environment: Mapping[str, str] = os.environ) -> BuildOptions:
    """The options that the environment asks for; raises UserError for a value that is none."""
    workspace, sparse = environment.get(WORKSPACE_VARIABLE, ""), environment.get(SPARSE_VARIABLE, "")
    if workspace and not (workspace.isascii() and workspace.isdigit() and 0 < int(workspace) < 2**20):
        raise UserError(f"{WORKSPACE_VARIABLE} is no number of MiB: '{workspace}'", hint="1024 is a gibibyte")
    if sparse not in ("", "0", "1"):
        raise UserError(
            f"{SPARSE_VARIABLE} is '{sparse}'", hint="0 leaves out kernels for sparse weights, 1 tries them"
        )
    return BuildOptions(int(workspace) if workspace else None, sparse != "0")


@dataclass(frozen=True)
class Model:
    """An ONNX model to build an engine of, with the named sides of its inputs set to numbers."""

    onnx: Path
    inputs: Sequence[TensorSpec] = ()
    sides: Mapping[str, int] = field(default_factory=dict)
    compute: str = "fastest"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs that have named sides."""
        return {
            spec.name: resolve(spec.shape, self.sides)
            for spec in self.inputs if any(isinstance(side, str) for side in spec.shape)
        }  # fmt: skip


def build_engine(
    package: Any, model: Model, options: BuildOptions, capabilities: Sequence[str] = (), cache: Path | None = None
) -> Any:
    """The serialized engine of a model, a buffer.

    `capabilities` are the compute capabilities of the GPUs that it is for, such as "8.6": tensorrt_rtx needs none of
    them here. Empty means the GPU that is here. What the builder measured is kept in `cache`. Raises BundleError with
    the builder's own reason for a model that it refuses.
    """
    log = make_log(package)
    builder = package.Builder(log)
    network = builder.create_network(_strongly_typed(package))
    _parse(package, network, model, log)
    config = builder.create_builder_config()
    _configure(package, builder, config, model, options)
    _set_capabilities(package, config, capabilities)
    if options.dla_core is not None:
        _use_dla(package, builder, network, config, options.dla_core, cache)
    timings = None if cache is None or package.__name__ == RTX else _Timings(config, cache / TIMING_NAME)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(f"TensorRT can't build '{model.onnx}': {log.last()}", hint=WAS_IT_OURS)
    if timings is not None:
        timings.store()
    return engine


class _Timings:
    """What the builder measured of its kernels, kept in a file; tensorrt_rtx measures nothing when it builds."""

    def __init__(self, config: Any, file: Path) -> None:
        self._file = file
        stored = file.read_bytes() if file.exists() else b""
        self._cache = config.create_timing_cache(stored) or config.create_timing_cache(b"")
        if not config.set_timing_cache(self._cache, False):  # measured on another device
            self._cache = config.create_timing_cache(b"")
            config.set_timing_cache(self._cache, False)

    def store(self) -> None:
        with atomic_file(self._file) as partial:
            partial.write_bytes(self._cache.serialize())


def capability_names(package: Any) -> list[str]:
    """The compute capabilities that the package builds for without their GPUs: "8.6" and others; none if it can't."""
    kinds = getattr(package, "ComputeCapability", None)
    names = [] if kinds is None else [name for name in kinds.__members__ if name.startswith("SM")]
    return [f"{name[2:-1]}.{name[-1]}" for name in names]


def make_log(package: Any) -> Any:
    """A logger that keeps what TensorRT says of errors and warnings."""

    class Log(package.ILogger):
        def __init__(self) -> None:
            package.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (package.ILogger.Severity.INTERNAL_ERROR, package.ILogger.Severity.ERROR):
                self.errors = [*self.errors, text][-KEPT_MESSAGES:]
            elif severity == package.ILogger.Severity.WARNING:
                self.warnings = [*self.warnings, text][-KEPT_MESSAGES:]

        def last(self) -> str:
            """What it said last, errors rather than warnings."""
            said = [" ".join(text.split()) for text in (self.errors or self.warnings)[-3:]]
            return "; ".join(said) or "it does not say why"

    return Log()


def _strongly_typed(package: Any) -> int:
    """The flag by which layers compute in the types that the graph has: newer packages know nothing else."""
    flag = getattr(package.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(package: Any, network: Any, model: Model, log: Any) -> None:
    parser = package.OnnxParser(network, log)
    if not parser.parse_from_file(str(model.onnx)):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        reason = "; ".join(" ".join(text.split()) for text in reasons) or log.last()
        raise BundleError(f"TensorRT refuses '{model.onnx}': {reason}", hint=WAS_IT_OURS)


def _configure(package: Any, builder: Any, config: Any, model: Model, options: BuildOptions) -> None:
    """Flags, the limit of the workspace, and a profile in which open sides have the one size that is run."""
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(package.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.sparse:
        config.set_flag(package.BuilderFlag.SPARSE_WEIGHTS)
    if model.compute == "float32":  # else products of float32 have 10 bits after the point
        config.clear_flag(package.BuilderFlag.TF32)
    if shapes := model.shapes:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)


def _set_capabilities(package: Any, config: Any, capabilities: Sequence[str]) -> None:
    if not capabilities:
        return
    known = capability_names(package)
    if unknown := [name for name in capabilities if name not in known]:
        raise UserError(
            f"{package.__name__} {package.__version__} does not build for compute capability {', '.join(unknown)}",
            hint=f"it builds for {', '.join(known)}" if known else "it builds for the GPU of its machine alone",
        )
    config.num_compute_capabilities = len(capabilities)
    for number, name in enumerate(capabilities):
        kind = getattr(package.ComputeCapability, f"SM{name.replace('.', '')}")
        config.set_compute_capability(kind, number)


class DlaLayer(msgspec.Struct, frozen=True):
    """A layer of the network, and whether the deep learning accelerator takes it."""

    name: str
    kind: str
    on_dla: bool


def _use_dla(package: Any, builder: Any, network: Any, config: Any, core: int, cache: Path | None) -> None:
    """Let the accelerator take what it can, and write down which layers these are."""
    if not 0 <= core < builder.num_DLA_cores:
        raise UserError(
            f"there is no DLA {core}: TensorRT sees {builder.num_DLA_cores} here",
            hint="Jetson Orin NX and AGX Orin have them; run on the GPU: --device GPU",
        )
    config.default_device_type = package.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(package.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    report = [DlaLayer(layer.name, layer.type.name, config.can_run_on_DLA(layer)) for layer in layers]
    if not any(layer.on_dla for layer in report):
        raise UserError("the DLA takes none of the layers", hint="run on the GPU: --device GPU")
    if cache is not None:
        with atomic_file(cache / DLA_REPORT_NAME) as partial:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
