"""Which of OpenVINO's operations its plugins for GPU and NPU can run, so that a build says what the device would not.

Sources: what the GPU plugin registers (openvino, src/plugins/intel_gpu/include/intel_gpu/plugin/primitives_list.hpp,
2025) and what the NPU's compiler reads (npu_compiler, src/vpux_compiler/src/frontend/IE.cpp, 2025), each with what the
plugin's own passes turn into that, without what only detectors and recurrent networks use.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..errors import OutzoomError

_BOTH = """
    Abs Acos Acosh AdaptiveAvgPool AdaptiveMaxPool Add Asin Asinh Assign Atan Atanh AvgPool BatchNormInference
    BatchToSpace BitwiseAnd BitwiseOr BitwiseXor Broadcast Bucketize Ceiling Clamp Concat Constant Convert
    ConvertLike Convolution ConvolutionBackpropData Cos Cosh CumSum DeformableConvolution DepthToSpace DFT
    Divide Elu Equal Erf Exp Eye FakeConvert FakeQuantize Floor FloorMod Gather GatherElements GatherND Gelu
    Greater GreaterEqual GridSample GroupConvolution GroupConvolutionBackpropData GroupNormalization HardSigmoid
    HSigmoid HSwish IDFT If Interpolate IRDFT Less LessEqual Log LogicalAnd LogicalNot LogicalOr LogicalXor
    LogSoftmax Loop LRN MatMul Maximum MaxPool Minimum Mish Mod Multiply MVN Negative NonZero NormalizeL2
    NotEqual OneHot Pad Parameter Power PRelu RandomUniform Range RDFT ReadValue ReduceL1 ReduceL2
    ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Result
    Reverse Roll Round ScaledDotProductAttention ScatterElementsUpdate ScatterNDUpdate ScatterUpdate Select Selu
    ShapeOf ShuffleChannels Sigmoid Sign Sin Sinh Slice Softmax SoftPlus SpaceToBatch SpaceToDepth Split Sqrt
    SquaredDifference Squeeze STFT StridedSlice Subtract Swish Tan Tanh Tile TopK Transpose Unsqueeze
    VariadicSplit
"""
OPERATIONS = {
    "GPU": {*_BOTH.split(), "BitwiseLeftShift", "BitwiseRightShift", "Col2Im", "IsFinite", "IsInf", "IsNaN"},
    "NPU": {*_BOTH.split(), "BitwiseNot", "Identity", "Inverse"},
}


def check_operations(model: Any, device: str) -> None:
    """Raises OutzoomError that counts the operations of an OpenVINO model which the device's plugin does not know."""
    if device not in OPERATIONS:
        return
    counts = Counter(node.get_type_name() for node in model.get_ops())
    if unknown := sorted(counts.keys() - OPERATIONS[device]):
        shown = ", ".join(f"{name} ({counts[name]})" for name in unknown)
        raise OutzoomError(
            f"OpenVINO's plugin for the {device} has no operation {shown}",
            hint="build this recipe for openvino-cpu, or report this: the graph should not have it",
        )
