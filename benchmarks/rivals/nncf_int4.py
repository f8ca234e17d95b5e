"""NNCF's weight compression of an OpenVINO model: 4 bits in blocks for linear layers, 8 for convolutions."""

from __future__ import annotations

import nncf
import openvino as ov
from harness import arguments, report


def main() -> None:
    """Compress the weights, write OpenVINO's IR."""
    args = arguments(__doc__)
    smaller_if_needed = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    model = nncf.compress_weights(
        ov.Core().read_model(args.onnx), mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=64,
        advanced_parameters=smaller_if_needed,
    )  # fmt: skip
    ov.save_model(model, args.out / "openvino_model.xml")
    report("openvino_model.xml", ["nncf", "openvino"])


if __name__ == "__main__":
    main()
