"""What needs an NVIDIA GPU: its memory, its counter of energy, and engines of TensorRT on it."""

import time
from importlib.util import find_spec

import numpy as np
import pytest

from outzoom.benchmarks.energy import EnergyMeter, nvml_source
from outzoom.runtime import UserError
from outzoom.runtime.backends import cuda as cuda_module
from outzoom.runtime.backends.protocol import Loading
from outzoom.runtime.backends.tensorrt import TensorRt

MIB = 2**20


def _has_gpu():
    try:
        cuda_module.gpu()
    except UserError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_gpu(), reason="there is no NVIDIA GPU, or no cuda-bindings")


@pytest.fixture
def device():
    return cuda_module.cuda()


@pytest.fixture
def free_bytes():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    return lambda: int(cuda_module.call(runtime, "cudaMemGetInfo")[0])


def test_the_driver_describes_the_gpu(device):
    found = device.gpu
    assert found.name
    assert "\0" not in found.name
    assert found.capability >= (5, 0)
    assert found.driver >= 12000
    assert found.memory_bytes > 1e9


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="there is no GPU 99: the driver sees"):
        cuda_module.gpu(99)


@pytest.mark.parametrize("size_bytes", [1, 255, 257, 4 * MIB, 100 * MIB])
def test_bytes_come_back_from_the_device_as_they_went(device, size_bytes):
    source, target = device.pinned(size_bytes), device.pinned(size_bytes)
    sent = np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
    source.array((size_bytes,), np.dtype(np.uint8))[...] = sent
    target.array((size_bytes,), np.dtype(np.uint8))[...] = 0
    pointer = device.memory.take(size_bytes)
    device.copy_in(pointer, source)
    device.copy_out(target, pointer)
    device.wait()
    is_same = np.array_equal(target.array((size_bytes,), np.dtype(np.uint8)), sent)
    device.memory.give_back(pointer)
    source.free()
    target.free()
    assert is_same


def test_what_nobody_uses_goes_back_to_the_driver(device, free_bytes):
    device.memory.trim()
    before = free_bytes()
    pointers = [device.memory.take(64 * MIB) for _ in range(4)]
    assert before - free_bytes() >= 256 * MIB
    assert device.memory.used_bytes >= 256 * MIB
    for pointer in pointers:
        device.memory.give_back(pointer)
    device.memory.trim()
    assert before - free_bytes() < 64 * MIB


def test_more_than_the_device_has_is_a_memory_error_and_the_device_goes_on(device):
    with pytest.raises(MemoryError, match="cudaMalloc"):
        device.memory.take(2**46)
    pointer = device.memory.take(MIB)
    device.memory.give_back(pointer)
    device.wait()


# Energy


def test_the_gpus_counter_tells_a_power_that_a_gpu_can_have():
    pytest.importorskip("zeus", reason="the extra 'energy'")
    source = nvml_source()
    assert source is not None
    meter = EnergyMeter([source])
    meter.start()
    start = time.monotonic()
    time.sleep(3)
    meter.stop()
    joules, seconds = meter.between(start + 0.2, start + 2.8)
    assert joules is not None
    assert 3 < joules / seconds < 1500


# Engines


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A convolution, a product and a softmax in float32, in ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)
    weights = {
        "kernel": rng.normal(0, 0.2, (16, 4, 3, 3)).astype(np.float32),
        "matrix": rng.normal(0, 0.2, (256, 32)).astype(np.float32),
        "shape": np.array([1, 16, 256], np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["c", "shape"], ["r"]),
            helper.make_node("MatMul", ["r", "matrix"], ["m"]),
            helper.make_node("Softmax", ["m"], ["y"], axis=-1),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 32])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def backend(request):
    """The packages that are here and build for this GPU."""
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return TensorRt(request.param)


X = np.random.default_rng(3).normal(0, 1, (1, 4, 16, 16)).astype(np.float32)


def test_an_engine_computes_what_onnxruntime_computes(backend, model, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    exact = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
    engine = backend.load(model, Loading(cache=tmp_path))
    made = engine.run({"x": X})["y"]
    engine.close()
    np.testing.assert_allclose(made, exact, atol=1e-5)  # 24 bits, sums in another order


def test_an_engine_is_built_once_and_opened_from_the_cache_then(backend, model, tmp_path):
    first = backend.load(model, Loading(cache=tmp_path))
    made = first.run({"x": X})["y"]
    first.close()
    stored = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.engine")}
    again = backend.load(model, Loading(cache=tmp_path))
    np.testing.assert_array_equal(again.run({"x": X})["y"], made)
    again.close()
    assert stored == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.engine")}
    assert stored


def test_a_hundred_runs_take_no_more_of_the_device_than_two(backend, model, tmp_path, device, free_bytes):
    engine = backend.load(model, Loading(cache=tmp_path))
    for _ in range(2):
        engine.run({"x": X})
    before = free_bytes(), device.memory.used_bytes
    for _ in range(100):
        engine.run({"x": X})
    assert (free_bytes(), device.memory.used_bytes) == before
    engine.rest()
    np.testing.assert_array_equal(engine.run({"x": X})["y"].shape, (1, 16, 32))
    engine.close()
