"""Layers and walks through loop nests that the tests of the memory model share."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from outzoom.hardware.tiling import Tiling, padding
from outzoom.hardware.workload import Layer


def layer(
    out_channels=4, in_channels=3, out=(5, 4), kernel=(3, 3), stride=1, groups=1, batch=1, bits=(8, 8, 8),
    inside=(0, 0), kind="conv", name="layer",
):  # fmt: skip
    return Layer(name, kind, batch, out_channels, in_channels, *out, *kernel, stride, groups, *bits, *inside)


@st.composite
def layers(draw, most=6):
    """A small convolution, padded or not; grouped, strided and of mixed bits at times."""
    size, stride, groups = st.integers(1, most), draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))
    out, kernel = (draw(size), draw(size)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    full = tuple((o - 1) * stride + k for o, k in zip(out, kernel, strict=True))
    inside = tuple(draw(st.integers(max(f - k + 1, 1), f)) for f, k in zip(full, kernel, strict=True))
    bits = tuple(draw(st.sampled_from([4, 8, 16])) for _ in range(3))
    return layer(
        groups * draw(size), draw(size), out, kernel, stride, groups, draw(st.sampled_from([1, 1, 3])), bits, inside
    )


def pieces(size, tile):
    """Where the tiles of an axis begin and end."""
    return [(start, min(start + tile, size)) for start in range(0, size, tile)]


def window(piece, outputs, kernel, stride, inputs):
    """The inputs that a piece of the outputs reads, and what lies between."""
    before = padding(outputs, kernel, stride, inputs)
    first = max(piece[0] * stride - before, 0)
    return first, max(min((piece[1] - 1) * stride + max(kernel, stride) - before, inputs), first)


def tiles_of(layer: Layer, tiling: Tiling):
    """The steps of the nest in order: (m, n, rows, columns) pieces."""
    loops = {
        "m": pieces(layer.out_channels // layer.groups, tiling.out_channels),
        "n": pieces(layer.in_channels, tiling.in_channels),
        "s": list(itertools.product(pieces(layer.out_height, tiling.rows), pieces(layer.out_width, tiling.columns))),
    }
    for step in itertools.product(*(loops[name] for name in tiling.order)):
        named = dict(zip(tiling.order, step, strict=True))
        yield named["m"], named["n"], *named["s"]


def repeated_tiles_of(layer: Layer, tiling: Tiling):
    """The steps of all groups and repetitions, one after the other, each with its number in front."""
    for repetition in range(layer.batch * layer.groups):
        for step in tiles_of(layer, tiling):
            yield repetition, *step


def operand_tiles(layer: Layer, step):
    """What a step has on the chip: of each operand a key, and its size in elements."""
    m, n, rows, columns = step
    high = window(rows, layer.out_height, layer.kernel_height, layer.stride, layer.input_height)
    wide = window(columns, layer.out_width, layer.kernel_width, layer.stride, layer.input_width)
    kernel = layer.kernel_height * layer.kernel_width
    length = {"m": m[1] - m[0], "n": n[1] - n[0]}
    return {
        "input": ((n, rows, columns), length["n"] * (high[1] - high[0]) * (wide[1] - wide[0])),
        "weight": ((m, n), length["m"] * length["n"] * kernel),
        "output": ((m, rows, columns), length["m"] * (rows[1] - rows[0]) * (columns[1] - columns[0])),
    }


def walked_bytes(layer: Layer, tiling: Tiling, partial_sum_bits=None):
    """Bytes of inputs, weights, outputs, and partial sums written, by walking through the nest tile by tile."""
    held, moved, seen, spilled = {}, {"input": 0, "weight": 0}, set(), 0
    for step in tiles_of(layer, tiling):
        for operand, (key, size) in operand_tiles(layer, step).items():
            if held.get(operand) != key:
                if operand != "output":
                    moved[operand] += size
                elif key in seen:
                    spilled += size
                else:
                    seen.add(key)
                held[operand] = key
    repeats = layer.batch * layer.groups
    return (
        moved["input"] * repeats * layer.input_bits / 8,
        moved["weight"] * repeats * layer.weight_bits / 8,
        layer.output_elements * layer.output_bits / 8,
        spilled * repeats * (partial_sum_bits or layer.output_bits) / 8,
    )
