"""Packed bits: by hand, against numpy's own bit functions, and back again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outzoom.runtime.bits import pack_bits, unpack_bits


@st.composite
def small_integers(draw):
    bits = draw(st.integers(1, 8))
    return bits, np.array(draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), np.uint8)


# --- by hand


@pytest.mark.parametrize(
    ("bits", "values", "packed"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 0, 1], [0b00001101, 0b1]),
        (2, [1, 2, 3, 0, 3], [0b00_11_10_01, 0b11]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
        (3, [1, 2, 7], [0b11_010_001, 0b1]),
        (4, [1, 2, 15], [0x21, 0x0F]),
        (5, [0b10001, 0b01110], [0b110_10001, 0b01]),
        (8, [0, 7, 255], [0, 7, 255]),
    ],
)
def test_the_first_value_is_in_the_lowest_bits_of_the_first_byte(bits, values, packed):
    assert pack_bits(np.array(values, np.uint8), bits).tolist() == packed
    assert unpack_bits(np.array(packed, np.uint8), bits, len(values)).tolist() == values


def test_a_part_of_what_was_packed_can_be_unpacked():
    assert unpack_bits(np.array([0x21, 0x43, 0x65], np.uint8), 4, 3).tolist() == [1, 2, 3]


def test_nothing_packs_to_nothing():
    assert pack_bits(np.zeros(0, np.uint8), 3).shape == (0,)
    assert unpack_bits(np.zeros(0, np.uint8), 3, 0).shape == (0,)


# --- parity: numpy, a byte for each bit


@given(small_integers())
def test_the_bits_are_those_of_numpys_packbits(case):
    bits, values = case
    ones = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little")
    assert pack_bits(values, bits).tolist() == np.packbits(ones, bitorder="little").tolist()


# --- properties


@given(small_integers())
def test_values_survive_packing_in_the_fewest_bytes(case):
    bits, values = case
    packed = pack_bits(values, bits)
    assert packed.size == -(-values.size * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, values.size), values)


@given(small_integers(), st.binary(max_size=5))
def test_what_follows_the_packed_values_is_not_read(case, rest):
    bits, values = case
    packed = np.concatenate([pack_bits(values, bits), np.frombuffer(rest, np.uint8)])
    assert np.array_equal(unpack_bits(packed, bits, values.size), values)


def test_arrays_with_gaps_pack_like_their_copies():
    values = np.arange(64, dtype=np.uint8)
    assert np.array_equal(pack_bits(values[::-3], 6), pack_bits(values[::-3].copy(), 6))
    packed = pack_bits(values, 6)
    assert np.array_equal(unpack_bits(np.repeat(packed, 2)[::2], 6, 64), values)


# --- what is refused


@pytest.mark.parametrize(("bits", "value"), [(1, 2), (2, 4), (3, 255), (7, 128)])
def test_a_value_that_needs_more_bits_is_refused(bits, value):
    with pytest.raises(ValueError, match=f"{bits} bits hold values up to {2**bits - 1}, got {value}"):
        pack_bits(np.array([0, value, 1], np.uint8), bits)


@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_bits_other_than_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be 1 to 8, got {bits}"):
        pack_bits(np.zeros(8, np.uint8), bits)
    with pytest.raises(ValueError, match=f"bits must be 1 to 8, got {bits}"):
        unpack_bits(np.zeros(8, np.uint8), bits, 1)


@pytest.mark.parametrize(("bits", "size", "count"), [(1, 1, 9), (2, 1, 5), (3, 3, 9), (3, 2, 6), (8, 2, 3), (4, 9, -1)])
def test_packed_data_too_short_for_the_count_is_refused(bits, size, count):
    with pytest.raises(ValueError, match=f"{size} bytes hold .* asked for {count}"):
        unpack_bits(np.zeros(size, np.uint8), bits, count)


@pytest.mark.parametrize("array", [np.zeros(4, np.int8), np.zeros(4, np.uint16), np.zeros((2, 2), np.uint8)])
def test_other_types_and_shapes_are_refused(array):
    with pytest.raises(ValueError, match="uint8"):
        pack_bits(array, 4)
    with pytest.raises(ValueError, match="uint8"):
        unpack_bits(array, 4, 1)
