"""Memory of an NVIDIA GPU, through NVIDIA's own bindings (`cuda-bindings`): no torch.

What an engine made stays on the device for as long as the caller keeps the array, so that the next engine that is given
that array need not have it copied there again.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import MissingPackageError, OutzoomError, UserError
from .protocol import Array

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
ALIGNMENT_BYTES = 256  # sizes are rounded up to it, so that more of them are alike


@dataclass(frozen=True)
class Gpu:
    """A device as the driver describes it. `driver` is the CUDA version of the driver, 12060 for 12.6."""

    number: int
    name: str
    capability: tuple[int, int]
    driver: int
    memory_bytes: int


@dataclass
class DeviceMemory:
    """Blocks of device memory; one that is given back is taken again for the same size.

    `allocate` and `free` are the driver's. A block may be given back at any moment, from whatever thread collects
    garbage: so it is only put into a queue, which the next one who takes a block looks through.
    """

    allocate: Callable[[int], int]
    free: Callable[[int], object]
    _sizes: dict[int, int] = field(default_factory=dict)  # of all blocks, by pointer
    _spare: dict[int, list[int]] = field(default_factory=dict)  # pointers by size
    _returned: deque[int] = field(default_factory=deque)

    def take(self, size_bytes: int) -> int:
        """A pointer to at least so many bytes."""
        rounded = max(-(-size_bytes // ALIGNMENT_BYTES), 1) * ALIGNMENT_BYTES
        self._sort_returned()
        if spare := self._spare.get(rounded):
            return spare.pop()
        pointer = self.allocate(rounded)
        self._sizes[pointer] = rounded
        return pointer

    def give_back(self, pointer: int) -> None:
        """Nobody uses the block any more."""
        self._returned.append(pointer)

    def trim(self) -> None:
        """Give the driver the blocks that nobody uses."""
        self._sort_returned()
        for pointers in self._spare.values():
            for pointer in pointers:
                del self._sizes[pointer]
                self.free(pointer)
        self._spare.clear()

    @property
    def used_bytes(self) -> int:
        """In blocks that were taken and not given back."""
        self._sort_returned()
        spare = sum(size * len(pointers) for size, pointers in self._spare.items())
        return sum(self._sizes.values()) - spare

    def _sort_returned(self) -> None:
        while self._returned:
            pointer = self._returned.popleft()
            self._spare.setdefault(self._sizes[pointer], []).append(pointer)


@dataclass
class Residents:
    """The arrays that are on the device as well, each until the last one who holds it lets it go.

    Such an array can't be written to, or what is on the device would be another one.
    """

    memory: DeviceMemory
    _kept: dict[int, tuple[weakref.ref[Array], int]] = field(default_factory=dict)  # by the array's id

    def keep(self, array: Array, pointer: int) -> None:
        """Remember that the block holds the array; it is given back when the array goes."""
        array.flags.writeable = False
        number = id(array)
        self._kept[number] = weakref.ref(array), pointer
        weakref.finalize(array, self._let_go, number).atexit = False

    def find(self, array: Array) -> int | None:
        """Where on the device an array is."""
        found = self._kept.get(id(array))
        if found is None or found[0]() is not array or array.flags.writeable:
            return None
        return found[1]

    def _let_go(self, number: int) -> None:
        _, pointer = self._kept.pop(number)
        self.memory.give_back(pointer)


class Cuda:
    """A GPU, one stream on it, and its memory."""

    def __init__(self, runtime: Any, gpu: Gpu) -> None:
        self._runtime, self.gpu = runtime, gpu
        self.select()
        self.stream = int(self._call("cudaStreamCreate"))
        self.memory = DeviceMemory(lambda size: int(self._call("cudaMalloc", size)), self._free)
        self.residents = Residents(self.memory)

    def select(self) -> None:
        """Let what this thread does next be done on this GPU."""
        self._call("cudaSetDevice", self.gpu.number)

    def pinned(self, size_bytes: int) -> PinnedMemory:
        """Memory of the host that the device copies from and to by itself."""
        pointer = int(self._call("cudaHostAlloc", max(size_bytes, 1), self._runtime.cudaHostAllocDefault))
        return PinnedMemory(pointer, size_bytes, lambda: self._call("cudaFreeHost", pointer))

    def copy_in(self, pointer: int, source: PinnedMemory) -> None:
        """Copy to the device; it is done when the stream comes to it."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, source.pointer, source.size_bytes, kind, self.stream)

    def copy_out(self, target: PinnedMemory, pointer: int) -> None:
        """Copy from the device; it is done when the stream comes to it."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.pointer, pointer, target.size_bytes, kind, self.stream)

    def wait(self) -> None:
        """Wait for all that the stream was given."""
        self._call("cudaStreamSynchronize", self.stream)

    def _free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._runtime, name, *arguments)


@dataclass
class PinnedMemory:
    """Page-locked memory of the host."""

    pointer: int
    size_bytes: int
    free: Callable[[], object]

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The memory as an array; it must not outlive the memory."""
        data = (ctypes.c_uint8 * self.size_bytes).from_address(self.pointer)
        made: Array = np.frombuffer(memoryview(data), dtype).reshape(shape)
        return made


def call(runtime: Any, name: str, *arguments: Any) -> Any:
    """What a function of CUDA's runtime returns beside its status; raises OutzoomError for any status but success.

    Raises MemoryError when the device has no more memory, UserError where the driver is missing.
    """
    try:
        status, *values = getattr(runtime, name)(*arguments)
    except RuntimeError as error:  # the bindings' own, for a driver library that is not there
        raise _no_driver(str(error)) from error
    if status == runtime.cudaError_t.cudaErrorMemoryAllocation:
        raise MemoryError(f"the GPU has no memory for what {name} needs")
    if status in (runtime.cudaError_t.cudaErrorInsufficientDriver, runtime.cudaError_t.cudaErrorStubLibrary):
        raise _no_driver(f"{name} says {status.name}")
    if status == runtime.cudaError_t.cudaErrorNoDevice:
        raise UserError("NVIDIA's driver sees no GPU on this machine", hint="is there one, and may this user use it?")
    if status != runtime.cudaError_t.cudaSuccess:
        raise OutzoomError(f"CUDA's {name} failed with {status.name}", hint="nvidia-smi and dmesg may tell more")
    return values[0] if len(values) == 1 else values


def _no_driver(reason: str) -> UserError:
    return UserError(
        f"NVIDIA's driver ({DRIVER_LIBRARY}) is not there, or too old: {reason}",
        hint="engines of TensorRT run on NVIDIA GPUs alone; install the driver, on a Jetson by flashing JetPack",
    )


def gpu(number: int = 0) -> Gpu:
    """What the driver says of a GPU; raises UserError where there is no driver, or no such GPU."""
    runtime = _bindings()
    count = int(call(runtime, "cudaGetDeviceCount"))
    if not 0 <= number < count:
        raise UserError(f"there is no GPU {number}: the driver sees {count}", hint="the first is GPU:0")
    properties = call(runtime, "cudaGetDeviceProperties", number)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(
        number, name.rstrip("\0"), (int(properties.major), int(properties.minor)),
        int(call(runtime, "cudaDriverGetVersion")), int(properties.totalGlobalMem),
    )  # fmt: skip


@functools.cache
def cuda(number: int = 0) -> Cuda:
    """The GPU that all engines of this process share; raises as `gpu` does."""
    return Cuda(_bindings(), gpu(number))


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        raise MissingPackageError("cuda-bindings", "tensorrt", "running engines of TensorRT") from error
    except (ImportError, RuntimeError) as error:
        raise _no_driver(str(error)) from error
