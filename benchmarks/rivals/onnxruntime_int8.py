"""ONNX Runtime's static quantization to 8 bits, in QDQ form, with ranges from the calibration feeds."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import arguments, feeds, report
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

LAYERS = ["Conv", "MatMul", "Gemm"]  # by default normalizations, sines and softmax, too: that ruins the output


class Reader(CalibrationDataReader):
    """The feeds of one run after another."""

    def __init__(self, folder: Path) -> None:
        self._runs = feeds(folder)

    def get_next(self) -> dict[str, Any] | None:
        """The next run's, None after the last."""
        return next(self._runs, None)


def main() -> None:
    """Quantize weights (signed, a scale for each channel) and activations (unsigned), write ONNX."""
    args = arguments(__doc__)
    with TemporaryDirectory(dir=args.outputs) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(  # its symbolic shape inference fails on the UNet
            args.onnx, prepared, skip_symbolic_shape=True, save_as_external_data=True, all_tensors_to_one_file=True,
        )  # fmt: skip
        quantize_static(
            prepared, args.out / "model.onnx", Reader(args.feeds), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=LAYERS,
            use_external_data_format=True,
        )  # fmt: skip
    report("model.onnx", ["onnxruntime", "onnx"])


if __name__ == "__main__":
    main()
