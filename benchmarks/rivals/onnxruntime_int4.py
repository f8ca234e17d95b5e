"""ONNX Runtime's weight compression: 4 bits in blocks for the matrix products, rounded to the nearest."""

from __future__ import annotations

import onnx
from harness import arguments, report
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer


def main() -> None:
    """Compress the weights of MatMul, write ONNX."""
    args = arguments(__doc__)
    quantizer = MatMulNBitsQuantizer(onnx.load(args.onnx), block_size=64, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(args.out / "model.onnx"), use_external_data_format=True)
    report("model.onnx", ["onnxruntime", "onnx"])


if __name__ == "__main__":
    main()
