"""The targets, and the backend behind each."""

from ..errors import unknown_name
from .onnxruntime import OnnxRuntime
from .onnxruntime_mobile import OnnxRuntimeMobile
from .openvino import OpenVino
from .protocol import Array, Backend, Engine, Loading

BACKENDS: dict[str, Backend] = {
    "onnxruntime": OnnxRuntime(),
    "onnxruntime-mobile": OnnxRuntimeMobile(),
    "openvino-cpu": OpenVino(device="CPU"),
    "openvino-gpu": OpenVino(device="GPU"),
    "openvino-npu": OpenVino(device="NPU"),
}


def backend_for(target: str) -> Backend:
    """The backend of a target; raises UserError with the nearest name for one that does not exist."""
    if target not in BACKENDS:
        raise unknown_name("target", target, BACKENDS)
    return BACKENDS[target]


__all__ = ["BACKENDS", "Array", "Backend", "Engine", "Loading", "backend_for"]
