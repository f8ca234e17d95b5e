"""What a model computes, layer by layer: the multiplications, and the bytes that each operand takes.

Every layer is written as a convolution. A linear layer has one column and as many rows as it has vectors; a product of
attention is a linear layer whose weights are the other operand, once for each head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Other kinds are normalization, softmax, elementwise, move and gather.
PRODUCTS = ("conv", "depthwise", "linear", "attention")
FLOAT_BITS = 32  # of an activation that the graph leaves in floating point


@dataclass(frozen=True)
class Layer:
    """One layer; tensors without a product in them have their channels in `out_channels` and no kernel.

    `batch` repeats the layer with weights and operands of its own (attention's heads). `in_channels` are those of one
    group. Of a float the bits are those that the graph says; `with_floats` makes them the device's. `operands` is how
    many activations of the output's size an elementwise layer reads.
    """

    name: str
    kind: str
    batch: int
    out_channels: int
    in_channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride: int
    groups: int
    input_bits: int
    weight_bits: int
    output_bits: int
    in_height: int = 0  # 0: as many rows as the kernel covers without padding
    in_width: int = 0
    operands: int = 1
    op: str = ""  # ONNX's name for it
    nonzero_fraction: float = 1.0  # of the weights, where they are pruned in a pattern that hardware skips (2:4)

    @property
    def is_product(self) -> bool:
        """Whether it multiplies and sums: the other layers have no multiply-accumulates to speak of."""
        return self.kind in PRODUCTS

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those with zeros and padding included."""
        return self.output_elements * self.in_channels * self.kernel_height * self.kernel_width * self.is_product

    @property
    def rows(self) -> int:
        """Of the product that it is, rows x depth times depth x columns, in each group and repetition."""
        return self.out_height * self.out_width

    @property
    def columns(self) -> int:
        """Of that product: output channels of a group."""
        return self.out_channels // self.groups

    @property
    def depth(self) -> int:
        """Of that product: what is summed over."""
        return self.in_channels * self.kernel_height * self.kernel_width

    @property
    def input_height(self) -> int:
        """Rows of the input."""
        return self.in_height or (self.out_height - 1) * self.stride + self.kernel_height

    @property
    def input_width(self) -> int:
        """Columns of the input."""
        return self.in_width or (self.out_width - 1) * self.stride + self.kernel_width

    @property
    def input_elements(self) -> int:
        """Of the streamed operand, or of all of an elementwise layer's."""
        if not self.is_product:
            return self.operands * self.output_elements
        return self.batch * self.groups * self.in_channels * self.input_height * self.input_width

    @property
    def weight_elements(self) -> int:
        """Of the weights, or of attention's other operand."""
        kernel = self.kernel_height * self.kernel_width
        return self.batch * self.out_channels * self.in_channels * kernel * self.is_product

    @property
    def output_elements(self) -> int:
        """Of what it makes."""
        return self.batch * self.out_channels * self.out_height * self.out_width

    @property
    def input_bytes(self) -> int:
        """Of the streamed operand."""
        return math.ceil(self.input_elements * self.input_bits / 8)

    @property
    def weight_bytes(self) -> int:
        """Of the weights as the engine reads them."""
        return math.ceil(self.weight_elements * self.weight_bits * self.nonzero_fraction / 8)

    @property
    def output_bytes(self) -> int:
        """Of what it makes."""
        return math.ceil(self.output_elements * self.output_bits / 8)

    @property
    def data_type(self) -> str:
        """What it computes in: integers where both operands are, else floats (into which small weights expand)."""
        bits = max(self.input_bits, self.weight_bits)
        return "int8" if bits <= 8 else "float16" if bits <= 16 else "float32"


@dataclass(frozen=True)
class Workload:
    """The layers of each component of a pipeline, in the order in which they run."""

    name: str
    recipe: str
    width: int
    height: int
    components: dict[str, tuple[Layer, ...]]
    compute: Literal["float32", "fastest"] = "fastest"  # what floats are computed in, as a bundle's recipe says it
    target: str = ""  # of the bundle
    file: str = ""  # the name of the bundle's folder, or of the graph

    @property
    def label(self) -> str:
        """What to call it among others."""
        return self.file or self.recipe

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Of each component, as its engine reads them."""
        return {
            name: sum(layer.weight_bytes for layer in layers if layer.kind != "attention")
            for name, layers in self.components.items()
        }


def macs_by_kind(layers: Iterable[Layer]) -> dict[str, int]:
    """Multiply-accumulates of each kind of layer that has any."""
    found: dict[str, int] = {}
    for layer in layers:
        if layer.macs:
            found[layer.kind] = found.get(layer.kind, 0) + layer.macs
    return found


def conv_fractions(layers: Sequence[Layer]) -> dict[str, float]:
    """Shares of the multiply-accumulates: convolutions alone, and with the linear layers counted as 1x1 convolutions.

    The second is how 84% of SD2's UNet are convolutions: alone they are 52%.
    """
    macs = macs_by_kind(layers)
    total = sum(macs.values())
    alone = macs.get("conv", 0) + macs.get("depthwise", 0)
    return {"conv": alone / total, "conv_and_linear": (alone + macs.get("linear", 0)) / total}


@lru_cache(maxsize=64)
def with_floats(layers: tuple[Layer, ...], bits: int) -> tuple[Layer, ...]:
    """The layers on a device that computes floats in `bits` bits: 32-bit activations and weights become those."""

    def changed(value: int) -> int:
        return bits if value == FLOAT_BITS else value

    return tuple(
        replace(
            layer,
            input_bits=changed(layer.input_bits),
            weight_bits=changed(layer.weight_bits),
            output_bits=changed(layer.output_bits),
        )
        for layer in layers
    )


def attention_triples(layers: Sequence[Layer]) -> Iterator[tuple[int, int, int]]:
    """Of each attention the places of its scores, softmax and mixing; other products may stand between them."""
    for softmax, layer in enumerate(layers):
        if layer.kind == "softmax":
            before = next((i for i in range(softmax - 1, -1, -1) if layers[i].kind == "attention"), None)
            after = next((i for i in range(softmax + 1, len(layers)) if layers[i].kind == "attention"), None)
            if before is not None and after is not None:
                yield before, softmax, after


def column(layers: Sequence[Layer], value: Callable[[Layer], float]) -> NDArray[np.float64]:
    """One number of every layer, (layers,)."""
    return np.fromiter((value(layer) for layer in layers), np.float64, len(layers))


def map_components(workload: Workload, change: Callable[[tuple[Layer, ...]], tuple[Layer, ...]]) -> Workload:
    """The workload with the layers of every component changed."""
    changed: Mapping[str, tuple[Layer, ...]] = {name: change(each) for name, each in workload.components.items()}
    return replace(workload, components=dict(changed))
