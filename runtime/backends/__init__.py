"""The targets, and the backend behind each."""

from ..errors import unknown_name
from .onnxruntime import OnnxRuntime
from .onnxruntime_mobile import OnnxRuntimeMobile
from .openvino import OpenVino
from .protocol import Array, Backend, Engine, Loading
from .qnn import Qnn
from .qnn_origin import SOCS
from .tensorrt import TensorRt

BACKENDS: dict[str, Backend] = {
    "onnxruntime": OnnxRuntime(),
    "onnxruntime-mobile": OnnxRuntimeMobile(),
    "onnxruntime-qnn": Qnn(),
    **{f"onnxruntime-qnn-{name.lower()}": Qnn(soc) for name, soc in SOCS.items()},
    "openvino-cpu": OpenVino(device="CPU"),
    "openvino-gpu": OpenVino(device="GPU"),
    "openvino-npu": OpenVino(device="NPU"),
    "tensorrt": TensorRt("tensorrt"),
    "tensorrt-rtx": TensorRt("tensorrt_rtx"),
}


def backend_for(target: str) -> Backend:
    """The backend of a target; raises UserError with the nearest name for one that does not exist."""
    if target not in BACKENDS:
        raise unknown_name("target", target, BACKENDS)
    return BACKENDS[target]


def maker_version(target: str) -> str:
    """The version of what makes a target's engine files when a bundle is built; raises as `Backend.version` does.

    TensorRT's engines are made on the device, as Qualcomm's are where no SoC is named, so that the package is not
    needed before.
    """
    backend = backend_for(target)
    return "made on the device" if isinstance(backend, TensorRt) or backend == Qnn() else backend.version()


__all__ = ["BACKENDS", "Array", "Backend", "Engine", "Loading", "backend_for", "maker_version"]
