"""Compression techniques, one a file: passes `Model -> Model` over ONNX graphs."""
