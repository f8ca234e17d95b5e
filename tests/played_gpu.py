"""A GPU played by the host's memory, and a TensorRT whose one engine doubles: for the bookkeeping of buffers alone."""

import ctypes
from types import SimpleNamespace

import numpy as np

TO_DEVICE, TO_HOST = 1, 2
SHAPE = (2, 3)


class HostRuntime(SimpleNamespace):
    """CUDA's runtime: the functions that cuda.py calls, and what they return."""

    def __init__(self):
        self.blocks, self.pinned, self.copied_in = {}, {}, 0
        errors = {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorInsufficientDriver": 35}
        errors |= {"cudaErrorStubLibrary": 34, "cudaErrorNoDevice": 100}
        super().__init__(
            cudaError_t=SimpleNamespace(**errors),
            cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=TO_DEVICE, cudaMemcpyDeviceToHost=TO_HOST),
            cudaHostAllocDefault=0,
            cudaMalloc=lambda size: self._allocated(self.blocks, size),
            cudaHostAlloc=lambda size, flags: self._allocated(self.pinned, size),
            cudaFree=lambda pointer: self._freed(self.blocks, pointer),
            cudaFreeHost=lambda pointer: self._freed(self.pinned, pointer),
            cudaMemcpyAsync=self._copy,
            cudaSetDevice=lambda number: (0,),
            cudaStreamCreate=lambda: (0, 7),
            cudaStreamSynchronize=lambda stream: (0,),
        )

    def _allocated(self, where, size):
        data = ctypes.create_string_buffer(size)
        where[ctypes.addressof(data)] = data
        return 0, ctypes.addressof(data)

    def _freed(self, where, pointer):
        del where[pointer]
        return (0,)

    def _copy(self, target, source, size, kind, stream):
        self.copied_in += kind == TO_DEVICE
        ctypes.memmove(target, source, size)
        return (0,)


class Doubling:
    """TensorRT's package, runtime, engine and context in one: `y` is twice `x`, both (2, 3) in float32."""

    __name__ = "tensorrt"

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = range(3)

    class TensorIOMode:
        INPUT, OUTPUT = range(2)

    num_io_tensors = 2

    def __init__(self):
        self.contexts, self.addresses, self.works = 0, {}, True

    def Runtime(self, log):  # noqa: N802
        return self

    def deserialize_cuda_engine(self, data):
        return self

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_mode(self, name):
        return "xy".index(name)

    def get_tensor_dtype(self, name):
        return np.float32

    def get_tensor_shape(self, name):
        return SHAPE

    def nptype(self, kind):
        return kind

    def create_execution_context(self):
        self.contexts += 1
        return self

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def execute_async_v3(self, stream):
        given, made = ((ctypes.c_float * 6).from_address(self.addresses[name]) for name in "xy")
        made[:] = [2 * one for one in given]
        return self.works
