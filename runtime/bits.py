"""Small unsigned integers packed without gaps, as codes and positions of compressed weights are stored.

Bit order is little-endian, within a byte and across bytes: value i of `bits` bits begins at bit i * bits, and bit k
of the whole is bit k % 8 of byte k // 8. So 8 values always fill `bits` bytes, and the place of a value among its
8 fixes its byte and its shift: both functions go over these 8 places, each of them for all values at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """`values` in `bits` bits each, 1 to 8: (n,) -> (ceil(n * bits / 8),), the bits left over 0.

    Raises ValueError if `bits` is out of range, `values` are not (n,) uint8, or one of them needs more bits.
    """
    _check_bits(bits)
    if values.dtype != np.uint8 or values.ndim != 1:
        raise ValueError(f"values to pack must be (n,) uint8, got {values.shape} {values.dtype}")
    if values.size and values.max() > _largest(bits):
        raise ValueError(f"{bits} bits hold values up to {_largest(bits)}, got {values.max()}")
    packed = np.zeros(_packed_size(values.size, bits), np.uint8)
    for place in range(8):
        part = values[place::8]
        byte, shift = divmod(place * bits, 8)
        packed[byte::bits][: part.size] |= part << shift
        if shift + bits > 8:
            packed[byte + 1 :: bits][: part.size] |= part >> (8 - shift)
    return packed


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` values that `pack_bits` put into `packed`: (size,) -> (count,).

    Raises ValueError if `bits` is not 1 to 8, `packed` is not (size,) uint8, or it is too short for `count`.
    """
    _check_bits(bits)
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise ValueError(f"packed data must be (size,) uint8, got {packed.shape} {packed.dtype}")
    if not 0 <= count <= packed.size * 8 // bits:
        raise ValueError(f"{packed.size} bytes hold {packed.size * 8 // bits} values of {bits} bits, asked for {count}")
    values = np.empty(count, np.uint8)
    for place in range(8):
        part = values[place::8]
        byte, shift = divmod(place * bits, 8)
        np.right_shift(packed[byte::bits][: part.size], shift, out=part)
        if shift + bits > 8:
            part |= packed[byte + 1 :: bits][: part.size] << (8 - shift)
        part &= _largest(bits)
    return values


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")


def _largest(bits: int) -> int:
    return (1 << bits) - 1


def _packed_size(count: int, bits: int) -> int:
    return (count * bits + 7) // 8
