"""What ONNX Runtime's own checker says of a model on a phone: whether its accelerators take the graph."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory


def mobile_usability(model: Path) -> list[str]:
    """The lines of the mobile usability report of an ONNX model, for NNAPI and Core ML; its weights are not read.

    Source: onnxruntime/tools/mobile_helpers/usability_checker.py.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker

    heard = _Heard()
    logger = logging.Logger("usability", logging.INFO)
    logger.addHandler(heard)
    with TemporaryDirectory() as folder:
        graph = Path(folder, model.name)
        _save_graph(model, graph)
        usability_checker.checker(graph, logger)
    lines = (line.strip() for message in heard.messages for line in message.splitlines())
    return [line for line in lines if line.strip("=-")]


class _Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


def _save_graph(model: Path, target: Path) -> None:
    """The graph with its weights as inputs, of fixed sizes as they are; the small constants in it stay."""
    import onnx

    proto = onnx.load(model, load_external_data=False)
    external = [one for one in proto.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        proto.graph.initializer.remove(tensor)
    onnx.save(proto, target)
