"""NNCF's post-training quantization of an OpenVINO model to 8 bits, with ranges from the calibration feeds."""

from __future__ import annotations

import nncf
import openvino as ov
from harness import arguments, feeds, report


def main() -> None:
    """Quantize weights and activations, write OpenVINO's IR."""
    args = arguments(__doc__)
    samples = nncf.Dataset(list(feeds(args.feeds)))
    model = nncf.quantize(
        ov.Core().read_model(args.onnx), samples, preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER, subset_size=len(list(args.feeds.glob("*.npz"))),
    )  # fmt: skip
    ov.save_model(model, args.out / "openvino_model.xml")
    report("openvino_model.xml", ["nncf", "openvino"])


if __name__ == "__main__":
    main()
