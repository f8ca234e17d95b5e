"""What a TensorRT engine belongs to: a GPU, its driver, a version of the package, and how it was built.

NVIDIA's runtime may crash on an engine of another GPU or version, so it is never given one: what an engine belongs to
is in a small file beside it, which is compared with what is here before the engine is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from ..errors import BundleError
from .cuda import Gpu

ENGINE_NAME, ORIGIN_NAME, KERNELS_NAME = "model.engine", "origin.json", "kernels.cache"
MAX_ORIGIN_BYTES = 2**16
KEY_DIGITS = 16
BUILD_AGAIN = "compile it again here: outzoom compile BUNDLE"


class Origin(msgspec.Struct, frozen=True):
    """What an engine was built by and for, and how.

    `capabilities` are those of the GPUs that it runs on, "8.7" for Orin. `gpu` and `driver` are None for one that was
    built ahead, without a GPU. `settings` are the options of the builder, and the shapes of the inputs.
    """

    package: str
    version: str
    capabilities: tuple[str, ...]
    gpu: str | None
    driver: int | None
    compute: str
    settings: dict[str, str]

    @property
    def key(self) -> str:
        """A name for it that differs from that of any other origin."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:KEY_DIGITS]

    def obstacle(self, version: str, here: Gpu) -> str | None:
        """Why such an engine can't be opened by a version of the package on a GPU; None if it can."""
        capability = shown_capability(here)
        if self.version != version:
            return f"it was built by {self.package} {self.version}, and here is {version}"
        if self.capabilities and capability not in self.capabilities:
            built = ", ".join(self.capabilities)
            return f"it was built for GPUs of compute capability {built}, and '{here.name}' has {capability}"
        if self.gpu is not None and self.gpu != here.name:
            return f"it was built on '{self.gpu}', and this is '{here.name}'"
        if self.driver is not None and self.driver != here.driver:
            return f"it was built with the driver of CUDA {self.driver}, and here is that of {here.driver}"
        return None


class Stored(msgspec.Struct, frozen=True):
    """What lies beside an engine: its origin, and its size, by which one that was cut off is known."""

    origin: Origin
    size_bytes: int


def shown_capability(gpu: Gpu) -> str:
    """The compute capability of a GPU, such as "8.7"."""
    return ".".join(map(str, gpu.capability))


def write_origin(engine: Path, origin: Origin) -> None:
    """Say beside an engine that was written what it belongs to."""
    stored = Stored(origin, engine.stat().st_size)
    engine.with_name(ORIGIN_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(stored)))


def read_origin(engine: Path) -> Origin:
    """What an engine belongs to; raises BundleError where that is not known, or the engine is not whole."""
    file = engine.with_name(ORIGIN_NAME)
    try:
        if file.stat().st_size > MAX_ORIGIN_BYTES:
            raise BundleError(f"'{file}' has more than {MAX_ORIGIN_BYTES} bytes", hint=BUILD_AGAIN)
        stored = msgspec.json.decode(file.read_bytes(), type=Stored)
        size_bytes = engine.stat().st_size
    except FileNotFoundError as error:
        message = f"nothing says what the engine '{engine}' was built for: '{error.filename}' is missing"
        raise BundleError(message, hint=BUILD_AGAIN) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"'{file}' can't be read: {error}", hint=BUILD_AGAIN) from error
    if size_bytes != stored.size_bytes:
        message = f"the engine '{engine}' has {size_bytes} bytes; {stored.size_bytes} were written"
        raise BundleError(message, hint=BUILD_AGAIN)
    return stored.origin


def check_origin(engine: Path, package: str, version: str, here: Gpu) -> Origin:
    """What an engine belongs to; raises BundleError for one that is not for this package, version and GPU."""
    origin = read_origin(engine)
    obstacle = origin.obstacle(version, here)
    if origin.package != package:
        obstacle = f"it was built by {origin.package}, and this is {package}"
    if obstacle is not None:
        raise BundleError(f"the engine '{engine}' is not for this device: {obstacle}", hint=BUILD_AGAIN)
    return origin
