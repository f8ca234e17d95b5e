"""A graph as files of ONNX and OpenVINO both tell it: nodes, and the shapes and types of what flows between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_GRAPH_BYTES = 256 * 2**20  # of a file without its weights; full-size SD2's UNet takes 3 MB
MAX_NODES = 1_000_000
MAX_TENSOR_ELEMENTS = 2**31


@dataclass(frozen=True)
class Tensor:
    """Shape, bits of an element, whether it is a number with a fraction, and whether it is stored in the file."""

    shape: tuple[int, ...]
    bits: int
    is_float: bool
    is_constant: bool = False
    label: str = ""  # what the file calls it, where that is not its name here


@dataclass(frozen=True)
class Node:
    """An operator by its ONNX name; `attributes` are those that say what it computes, as integers."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def attribute(self, name: str, default: int = 0) -> int:
        """The first number of an attribute."""
        found = self.attributes.get(name, ())
        return found[0] if found else default


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, and every tensor by name."""

    file: str  # for messages
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
