"""TensorRT: engines that the real builder makes without a GPU, and what can be tested where there is none.

The builder is tensorrt_rtx, in this environment or in that of the Python that OUTZOOM_TENSORRT_RTX_PYTHON names.
Nothing here runs an engine of TensorRT: that takes a GPU. Where one is played, by the host's memory and an engine that
doubles, it is for the bookkeeping of buffers alone.
"""

# ruff: noqa: E731, N801, N802, N815 - the names of CUDA's own functions

import ctypes
import gc

import msgspec
import numpy as np
import pytest

from outzoom.runtime.backends.cuda import ALIGNMENT_BYTES, Cuda, DeviceMemory, Gpu, Residents
from outzoom.runtime.backends.tensorrt import is_origin, parse_device
from outzoom.runtime.backends.tensorrt_build import BuildOptions, options_of
from outzoom.runtime.backends.tensorrt_engine import TensorRtEngine
from outzoom.runtime.backends.tensorrt_origin import (
    ENGINE_NAME,
    ORIGIN_NAME,
    Origin,
    check_origin,
    read_origin,
    write_origin,
)
from outzoom.runtime.errors import BundleError, OutzoomError, UserError

ORIN = Gpu(0, "Orin", (8, 7), 12060, 2**34)
HERE = Origin("tensorrt", "10.3.0", ("8.7",), "Orin", 12060, "fastest", {"sparse": "True"})


@pytest.fixture
def stored_engine(tmp_path):
    """Writes an engine's file, whatever is in it, with an origin beside it."""

    def stored_engine(origin=HERE):
        engine = tmp_path / ENGINE_NAME
        engine.write_bytes(b"not for any GPU")
        write_origin(engine, origin)
        return engine

    return stored_engine


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "10.7.0"}, r"built by tensorrt 10\.7\.0, and here is 10\.3\.0"),
        ({"capabilities": ("8.6", "8.9")}, r"compute capability 8\.6, 8\.9, and 'Orin' has 8\.7"),
        ({"gpu": "Orin NX"}, "built on 'Orin NX', and this is 'Orin'"),
        ({"driver": 13000}, "driver of CUDA 13000, and here is that of 12060"),
        ({"package": "tensorrt_rtx"}, "built by tensorrt_rtx, and this is tensorrt"),
    ],
)
def test_an_engine_of_another_device_driver_or_version_is_refused(stored_engine, change, says):
    engine = stored_engine(msgspec.structs.replace(HERE, **change))
    with pytest.raises(BundleError, match=says) as caught:
        check_origin(engine, "tensorrt", "10.3.0", ORIN)
    assert "outzoom compile" in caught.value.hint


def test_an_engine_of_this_device_is_accepted(stored_engine):
    assert check_origin(stored_engine(), "tensorrt", "10.3.0", ORIN) == HERE


def test_an_engine_that_was_built_ahead_runs_on_each_gpu_of_its_capabilities(stored_engine):
    ahead = msgspec.structs.replace(HERE, package="tensorrt_rtx", gpu=None, driver=None, capabilities=("8.6", "8.7"))
    assert check_origin(stored_engine(ahead), "tensorrt_rtx", "10.3.0", ORIN) == ahead


@pytest.mark.parametrize(
    "change",
    [
        {"version": "10.7.0"}, {"capabilities": ("8.6",)}, {"gpu": "Orin NX"}, {"driver": 13000},
        {"compute": "float32"}, {"settings": {"sparse": "False"}}, {"package": "tensorrt_rtx"},
    ],
)  # fmt: skip
def test_engines_of_different_origin_have_different_names_in_the_cache(stored_engine, change):
    other = msgspec.structs.replace(HERE, **change)
    assert other.key != HERE.key
    assert not is_origin(stored_engine(), other)  # not even one that lies under its name


def test_an_engine_that_was_cut_off_is_built_again(stored_engine):
    engine = stored_engine()
    assert is_origin(engine, HERE)
    engine.write_bytes(b"not for")
    assert not is_origin(engine, HERE)
    with pytest.raises(BundleError, match="has 7 bytes; 15 were written"):
        read_origin(engine)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"[" * 40_000, b" " * 70_000])
def test_a_damaged_origin_is_refused(stored_engine, damage):
    engine = stored_engine()
    engine.with_name(ORIGIN_NAME).write_bytes(damage)
    with pytest.raises(BundleError):
        read_origin(engine)
    assert not is_origin(engine, HERE)


def test_an_engine_without_an_origin_is_refused(stored_engine):
    engine = stored_engine()
    engine.with_name(ORIGIN_NAME).unlink()
    with pytest.raises(BundleError, match="nothing says what the engine"):
        read_origin(engine)


@pytest.mark.parametrize(
    ("text", "found"), [(None, (0, None)), ("GPU:1", (1, None)), ("DLA", (0, 0)), ("DLA:1", (0, 1))]
)
def test_a_device_names_a_gpu_or_an_accelerator(text, found):
    assert parse_device(text) == found


@pytest.mark.parametrize("text", ["", "CPU", "GPU:", "GPU:-1", "DLA:1:2", "gpu", "GPU:999"])
def test_another_device_is_refused(text):
    if not text:
        assert parse_device(text) == (0, None)
        return
    with pytest.raises(UserError, match="TensorRT runs on GPU and DLA"):
        parse_device(text)


def test_options_come_from_the_environment():
    assert options_of({}) == BuildOptions()
    asked = options_of({"OUTZOOM_TENSORRT_WORKSPACE_MIB": "512", "OUTZOOM_TENSORRT_SPARSE": "0"})
    assert asked == BuildOptions(workspace_mib=512, sparse=False)


@pytest.mark.parametrize(
    "environment",
    [{"OUTZOOM_TENSORRT_WORKSPACE_MIB": text} for text in ("0", "-1", "1e3", "lots", "9" * 30)]
    + [{"OUTZOOM_TENSORRT_SPARSE": "yes"}],
)
def test_options_that_are_none_are_refused(environment):
    with pytest.raises(UserError, match="OUTZOOM_TENSORRT"):
        options_of(environment)


@pytest.fixture
def memory():
    """Device memory played by numbers: `live` has the blocks that the driver would have."""
    live: dict[int, int] = {}

    def allocate(size_bytes):
        pointer = 0x1000 * (len(live) + 1) + sum(live.values())
        live[pointer] = size_bytes
        return pointer

    made = DeviceMemory(allocate, live.pop)
    made.live = live
    return made


def test_a_block_that_is_given_back_is_taken_again_for_its_size(memory):
    first = memory.take(1000)
    memory.give_back(first)
    assert memory.take(900) == first  # both are rounded up to 1024
    assert memory.take(900) != first
    assert memory.used_bytes == 8 * ALIGNMENT_BYTES


def test_trimming_frees_what_nobody_uses_and_nothing_else(memory):
    used, spare = memory.take(1), memory.take(5000)
    memory.give_back(spare)
    memory.trim()
    assert list(memory.live) == [used]
    assert memory.used_bytes == ALIGNMENT_BYTES


def test_an_array_stays_on_the_device_until_the_last_one_lets_it_go(memory):
    residents = Residents(memory)
    array, pointer = np.zeros(8, np.float32), memory.take(32)
    residents.keep(array, pointer)
    kept = {"text": array}
    del array
    assert residents.find(kept["text"]) == pointer
    assert memory.used_bytes == ALIGNMENT_BYTES
    kept.clear()
    gc.collect()
    assert memory.used_bytes == 0
    assert memory.take(32) == pointer


def test_an_equal_array_or_a_part_is_not_taken_for_the_one_on_the_device(memory):
    residents = Residents(memory)
    array = np.arange(8, dtype=np.float32)
    residents.keep(array, memory.take(32))
    assert residents.find(array.copy()) is None
    assert residents.find(array[:]) is None


def test_an_array_on_the_device_can_not_be_changed_unnoticed(memory):
    residents = Residents(memory)
    array = np.zeros(8, np.float32)
    residents.keep(array, memory.take(32))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    array.flags.writeable = True
    assert residents.find(array) is None


class HostRuntime:
    """CUDA's runtime, played by the memory of the host: the functions that cuda.py calls, and what they return."""

    cudaHostAllocDefault = 0

    class cudaError_t:
        cudaSuccess, cudaErrorMemoryAllocation, cudaErrorInsufficientDriver = 0, 2, 35
        cudaErrorStubLibrary, cudaErrorNoDevice = 34, 100

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 1, 2

    def __init__(self):
        self.blocks, self.pinned, self.copied_in = {}, {}, 0

    def _allocated(self, where, size):
        data = ctypes.create_string_buffer(size)
        where[ctypes.addressof(data)] = data
        return 0, ctypes.addressof(data)

    def cudaMalloc(self, size):
        return self._allocated(self.blocks, size)

    def cudaHostAlloc(self, size, flags):
        return self._allocated(self.pinned, size)

    def cudaFree(self, pointer):
        del self.blocks[pointer]
        return (0,)

    def cudaFreeHost(self, pointer):
        del self.pinned[pointer]
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        self.copied_in += kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaSetDevice(self, number):
        return (0,)

    def cudaStreamCreate(self):
        return 0, 7

    def cudaStreamSynchronize(self, stream):
        return (0,)


class Doubling:
    """TensorRT, played by an engine that doubles `x`, (2, 3) in float32, into `y`; a context has the addresses."""

    __name__ = "tensorrt"

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = range(3)

    class TensorIOMode:
        INPUT, OUTPUT = range(2)

    def __init__(self):
        self.contexts, self.addresses, self.works = 0, {}, True

    num_io_tensors = 2
    Runtime = deserialize_cuda_engine = lambda self, data: self
    get_tensor_name = lambda self, index: "xy"[index]
    get_tensor_mode = lambda self, name: "xy".index(name)
    get_tensor_dtype = lambda self, name: np.float32
    get_tensor_shape = lambda self, name: (2, 3)
    nptype = lambda self, kind: kind

    def create_execution_context(self):
        self.contexts += 1
        return self

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def execute_async_v3(self, stream):
        given, made = ((ctypes.c_float * 6).from_address(self.addresses[name]) for name in "xy")
        made[:] = [2 * one for one in given]
        return self.works


@pytest.fixture
def doubling(tmp_path):
    """Opens an engine of TensorRtEngine's own on the played device: the engine, the device and the package."""
    runtime, package = HostRuntime(), Doubling()
    device = Cuda(runtime, ORIN)
    (tmp_path / ENGINE_NAME).touch()

    def doubling(keep=True):
        return TensorRtEngine(package, tmp_path / ENGINE_NAME, device, {}, keep), runtime, package

    return doubling


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_one_engine_made_is_not_copied_to_the_device_for_the_next(doubling):
    first, runtime, _ = doubling()
    second = doubling()[0]
    made = first.run({"x": X})["y"]
    assert runtime.copied_in == 1
    np.testing.assert_array_equal(second.run({"x": made})["y"], 4 * X)
    assert runtime.copied_in == 1
    np.testing.assert_array_equal(second.run({"x": made.copy()})["y"], 4 * X)
    assert runtime.copied_in == 2


def test_outputs_of_a_frugal_engine_are_not_kept_on_the_device(doubling):
    engine, runtime, _ = doubling(keep=False)
    made = engine.run({"x": X})["y"]
    made += 1
    np.testing.assert_array_equal(engine.run({"x": made})["y"], 4 * X + 2)
    assert runtime.copied_in == 2
    engine.rest()
    assert not runtime.blocks


def test_a_thousand_runs_take_no_more_memory_than_two(doubling):
    engine, runtime, _ = doubling()
    made = X
    for _ in range(1000):
        made = engine.run({"x": np.zeros_like(X) + made / 2})["y"]
    np.testing.assert_array_equal(made, X)
    assert len(runtime.blocks) <= 3


def test_an_engine_rests_without_what_it_works_in_and_runs_again(doubling):
    engine, runtime, package = doubling()
    kept = engine.run({"x": X})["y"]
    engine.rest()
    assert len(runtime.blocks) == 1  # that of the array that we hold
    np.testing.assert_array_equal(engine.run({"x": kept})["y"], 4 * X)
    assert package.contexts == 2


def test_a_closed_engine_leaves_nothing_on_the_device_or_pinned(doubling):
    engine, runtime, _ = doubling()
    engine.run({"x": X})
    gc.collect()
    engine.close()
    assert not runtime.blocks
    assert not runtime.pinned


def test_an_input_of_another_shape_is_refused_before_it_is_copied(doubling):
    engine, runtime, _ = doubling()
    with pytest.raises(ValueError, match=r"'x' has the shape \(3, 2\); the engine was built for \(2, 3\)"):
        engine.run({"x": X.T})
    assert runtime.copied_in == 0


def test_a_run_that_fails_gives_its_memory_back(doubling):
    engine, runtime, package = doubling()
    package.works = False
    with pytest.raises(OutzoomError, match="TensorRT's engine failed"):
        engine.run({"x": X})
    engine.rest()
    assert not runtime.blocks


def test_a_device_without_memory_is_a_memory_error(doubling):
    engine, runtime, _ = doubling()
    runtime.cudaMalloc = lambda size: (2, None)
    with pytest.raises(MemoryError, match="cudaMalloc"):
        engine.run({"x": X})
