"""Running an engine of TensorRT on a GPU, with the arrays that pass from engine to engine kept there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutzoomError
from ..files import atomic_file
from .cuda import Cuda, PinnedMemory
from .protocol import Array
from .tensorrt_build import make_log


class TensorRtEngine:
    """An engine on a GPU, and the memory that it reads and writes."""

    def __init__(
        self, package: Any, file: Path, device: Cuda, inputs: Mapping[str, tuple[int, ...]], keep: bool,
        kernels: Path | None = None,
    ) -> None:  # fmt: skip
        """`inputs` are the shapes of those that the engine leaves open; with `keep` outputs stay on the device, too.

        `kernels` is the file in which tensorrt_rtx keeps what it compiles for the GPU in the first run. Raises
        OutzoomError for a file that the package can't open.
        """
        self._package, self._device, self._inputs, self._keep = package, device, inputs, keep
        self._log = make_log(package)
        self._runtime = package.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise OutzoomError(f"TensorRT can't open '{file}': {self._log.last()}", hint="remove it, and compile again")
        self._kernels = kernels
        self._context: Any = None
        self._compiled: Any = None  # kernels of the context
        self._pinned: dict[str, PinnedMemory] = {}
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._taken = [name for name in names if modes[name] == package.TensorIOMode.INPUT]
        self._made = [name for name in names if modes[name] == package.TensorIOMode.OUTPUT]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name. Those that stay on the device, too, can't be written to."""
        self._device.select()
        context, borrowed = self._ready(), list[int]()
        try:
            for name in self._taken:
                context.set_tensor_address(name, self._placed(name, feeds[name], borrowed))
            places = {name: self._device.memory.take(self._size_bytes(name)) for name in self._made}
            borrowed += places.values()
            for name, pointer in places.items():
                context.set_tensor_address(name, pointer)
            if not context.execute_async_v3(self._device.stream):
                raise OutzoomError(f"TensorRT's engine failed: {self._log.last()}")
            for name, pointer in places.items():
                self._device.copy_out(self._host(name), pointer)
            self._device.wait()
            outputs = {name: self._host_array(name).copy() for name in self._made}
            if self._keep:
                for name, array in outputs.items():
                    self._device.residents.keep(array, places[name])
                    borrowed.remove(places[name])
            self._store_kernels()
            return outputs
        finally:
            for pointer in borrowed:
                self._device.memory.give_back(pointer)

    def rest(self) -> None:
        """Give back what it works in, and the blocks that no array needs."""
        self._context = self._compiled = None
        self._device.memory.trim()

    def close(self) -> None:
        """Give back all of its memory."""
        self._context = self._compiled = self._engine = self._runtime = None
        for memory in self._pinned.values():
            memory.free()
        self._pinned.clear()
        self._device.memory.trim()

    def _placed(self, name: str, array: Array, borrowed: list[int]) -> int:
        """Where on the device an input is, copied there now unless it is there already."""
        wanted = self._shape(name), self._dtype(name)
        if array.shape != wanted[0]:
            raise ValueError(f"the input '{name}' has the shape {array.shape}; the engine was built for {wanted[0]}")
        if array.dtype == wanted[1] and (pointer := self._device.residents.find(array)) is not None:
            return pointer
        self._host_array(name)[...] = array
        pointer = self._device.memory.take(self._size_bytes(name))
        borrowed.append(pointer)
        self._device.copy_in(pointer, self._host(name))
        return pointer

    def _ready(self) -> Any:
        """The execution context; of tensorrt_rtx with the kernels that were compiled the last time."""
        if self._context is not None:
            return self._context
        if self._kernels is None:
            self._context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            self._compiled = config.create_runtime_cache()
            if self._kernels.exists() and not self._compiled.deserialize(self._kernels.read_bytes()):
                self._kernels.unlink()  # for another driver: they are compiled again, and stored after the next run
            config.set_runtime_cache(self._compiled)
            self._context = self._engine.create_execution_context(config)
        if self._context is None:
            raise MemoryError(f"the GPU has no memory for an engine: {self._log.last()}")
        for name, shape in self._inputs.items():
            self._context.set_input_shape(name, shape)
        return self._context

    def _store_kernels(self) -> None:
        """Keep the kernels that were compiled for this GPU in the first run."""
        if self._kernels is None or self._kernels.exists():
            return
        with atomic_file(self._kernels) as partial:
            partial.write_bytes(self._compiled.serialize())

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._ready().get_tensor_shape(name))

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind: np.dtype[Any] = np.dtype(self._package.nptype(self._engine.get_tensor_dtype(name)))
        return kind

    def _size_bytes(self, name: str) -> int:
        return int(np.prod(self._shape(name))) * self._dtype(name).itemsize

    def _host(self, name: str) -> PinnedMemory:
        if name not in self._pinned:
            self._pinned[name] = self._device.pinned(self._size_bytes(name))
        return self._pinned[name]

    def _host_array(self, name: str) -> Array:
        return self._host(name).array(self._shape(name), self._dtype(name))
