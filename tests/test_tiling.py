"""Tiling a layer: bytes that cross the DRAM bus, by hand, by walking through the loops, and against all tilings."""

import itertools
import math
from dataclasses import astuple, replace

import pytest
from hardware_layers import layer, layers, operand_tiles, tiles_of, walked_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.hardware.networks import NETWORKS, conv, sd2_unet
from outzoom.hardware.tiling import (
    INPUT_STATIONARY,
    ORDERS,
    OUTPUT_STATIONARY,
    WEIGHT_STATIONARY,
    Buffers,
    Tiling,
    best_tiling,
    compulsory,
    equal_buffers,
    reuse_order,
    shared_buffer,
    traffic_of,
)
from outzoom.runtime.errors import UserError


def test_a_convolution_that_fits_moves_the_words_that_zigzag_counts():
    """16 to 32 channels, 3x3, 30x30 to 28x28, 8 bits, words of 64 bits: zigzag-dse 3.9.1, tpu_like."""
    moved = best_tiling(conv("conv", 32, 16, 28, 30), shared_buffer(2 * 2**20))[1]
    assert (moved.weight_bytes / 8, moved.input_bytes / 8, moved.output_bytes / 8) == (576, 1800, 3136)
    assert moved.partial_sum_bytes == 0


# 8 to 6 channels, 3x3, 6x6 inputs to 4x4; tiles of 2 rows, 3 output and 4 input channels: nm = nn = s = 2.
# Weights 6 * 8 * 9 = 432, outputs 6 * 16 = 96, inputs of both tiles 8 * (4 + 4) * 6 = 384.
@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        (OUTPUT_STATIONARY, (384 * 2, 432 * 2, 96, 0)),
        (WEIGHT_STATIONARY, (384 * 2, 432, 96, 96)),
        (INPUT_STATIONARY, (384, 432 * 2, 96, 96)),
    ],
    ids=["outputs stay", "weights stay", "inputs stay"],
)
def test_what_stays_is_moved_once(orders, expected):
    for order in orders:
        assert astuple(traffic_of(conv("conv", 6, 8, 4, 6), Tiling(order, 3, 4, 2, 4))) == expected


def test_with_all_input_channels_at_once_no_sum_leaves_the_chip():
    tiling = Tiling("mns", 3, 8, 2, 4)
    assert astuple(traffic_of(conv("conv", 6, 8, 4, 6), tiling)) == (384 * 2, 432, 96, 0)
    assert astuple(traffic_of(conv("conv", 6, 8, 4, 6), replace(tiling, order="smn"))) == (384, 432 * 2, 96, 0)


def test_wide_partial_sums_cost_what_they_weigh():
    assert traffic_of(conv("conv", 6, 8, 4, 6), Tiling("mns", 3, 4, 2, 4), 32).partial_sum_bytes == 96 * 4


def test_padding_is_not_fetched():
    assert compulsory(conv("conv", 1, 1, 8, 8)).input_bytes == 64


def test_rows_that_a_strided_kernel_never_reads_are_not_fetched():
    assert compulsory(conv("conv", 1, 1, 4, 9, 3, 2)).input_bytes == 81
    assert compulsory(conv("conv", 1, 1, 4, 10, 3, 2)).input_bytes == 81


@pytest.mark.parametrize(
    ("name", "each", "fused"),
    [("alexnet", 3_460_027, 2_530_555), ("vgg16", 37_873_484, 14_964_044), ("mobilenet_v1", 13_690_179, 3_387_139)],
)
def test_the_least_that_networks_move_is_that_of_the_first_prototype_which_fetched_padding(name, each, fused):
    convolutions = [replace(layer, in_height=0, in_width=0) for layer in NETWORKS[name]().convolutions().layers]
    moved = [compulsory(layer) for layer in convolutions]
    assert sum(each.total_bytes for each in moved) == each
    assert moved[0].input_bytes + sum(each.weight_bytes for each in moved) + moved[-1].output_bytes == fused


@st.composite
def tilings(draw, of):
    sizes = (of.out_channels // of.groups, of.in_channels, of.out_height, of.out_width)
    chosen = []
    for size in sizes:
        parts = draw(st.integers(1, size))
        chosen.append(-(-size // parts))
    return Tiling(draw(st.sampled_from(ORDERS)), *chosen)


@given(st.data(), layers(), st.sampled_from([None, 32]))
@settings(max_examples=60, deadline=None)
def test_bytes_are_those_of_walking_through_the_loops(data, layer, partial_sum_bits):
    tiling = data.draw(tilings(layer))
    assert astuple(traffic_of(layer, tiling, partial_sum_bits)) == walked_bytes(layer, tiling, partial_sum_bits)


def fits(layer, tiling, buffers):
    """Whether all tiles of all steps lie in the buffers; sums of some of the channels are wider."""
    sums = buffers.partial_sum_bits or layer.output_bits
    bits = {
        "input": layer.input_bits,
        "weight": layer.weight_bits,
        "output": sums if tiling.in_channels < layer.in_channels else layer.output_bits,
    }
    most = dict.fromkeys(bits, 0)
    for step in tiles_of(layer, tiling):
        for operand, (_, size) in operand_tiles(layer, step).items():
            most[operand] = max(most[operand], size * bits[operand])
    if buffers.shared:
        return sum(most.values()) <= buffers.total_bytes * 8
    room = {"input": buffers.input_bytes, "weight": buffers.weight_bytes, "output": buffers.output_bytes}
    return all(most[operand] <= room[operand] * 8 for operand in most)


SMALL_BUFFERS = st.builds(
    Buffers, st.integers(4, 60), st.integers(18, 90), st.integers(4, 60), st.booleans(), st.sampled_from([None, 32])
)


@given(layers(most=4), SMALL_BUFFERS, st.sampled_from([ORDERS, OUTPUT_STATIONARY, WEIGHT_STATIONARY, INPUT_STATIONARY]))
@settings(max_examples=60, deadline=None)
def test_no_tiling_at_all_moves_less(layer, buffers, orders):
    sizes = (layer.out_channels // layer.groups, layer.in_channels, layer.out_height, layer.out_width)
    least = None
    for order, *tile in itertools.product(orders, *(range(1, size + 1) for size in sizes)):
        if fits(layer, Tiling(order, *tile), buffers):
            moved = walked_bytes(layer, Tiling(order, *tile), buffers.partial_sum_bits)
            least = min(least or math.inf, sum(moved) + moved[3])
    if least is None:
        with pytest.raises(UserError, match="no tile of layer"):
            best_tiling(layer, buffers, orders)
    else:
        tiling, moved = best_tiling(layer, buffers, orders)
        assert moved.total_bytes == least
        assert fits(layer, tiling, buffers)


@given(layers(), SMALL_BUFFERS)
@settings(max_examples=40, deadline=None)
def test_nothing_beats_moving_everything_once(layer, buffers):
    try:
        moved = best_tiling(layer, buffers)[1]
    except UserError:
        return
    least = compulsory(layer)
    assert moved.input_bytes >= least.input_bytes
    assert moved.weight_bytes >= least.weight_bytes
    assert moved.output_bytes == least.output_bytes


def test_pictures_of_a_batch_share_the_weights():
    fc = layer(64, 256, (1, 1), (1, 1), kind="linear")
    assert best_tiling(fc, equal_buffers(4096), pictures=4)[1].weight_bytes == 64 * 256
    assert best_tiling(fc, equal_buffers(4096), pictures=4)[1].input_bytes == 4 * 256


def test_each_head_of_attention_has_operands_of_its_own():
    heads = layer(16, 8, (16, 1), (1, 1), batch=4, kind="attention")
    assert astuple(best_tiling(heads, equal_buffers(4096))[1]) == (4 * 128, 4 * 128, 4 * 256, 0)


def test_a_layer_without_a_product_is_streamed_through():
    added = replace(layer(8, 8, (4, 4), (1, 1), kind="elementwise"), operands=2)
    assert astuple(best_tiling(added, equal_buffers(16))[1]) == (256, 0, 128, 0)


def test_weights_that_are_zero_by_a_pattern_are_not_moved():
    assert compulsory(replace(layer(4, 4, kernel=(1, 1)), nonzero_fraction=0.5)).weight_bytes == 8


def test_the_operand_that_is_used_most_stays_longest():
    # Weights are used 56 * 56 = 3136 times, inputs 64 * 9 = 576, outputs 64 * 9 = 576: a picture's first layers.
    assert reuse_order(conv("early", 64, 64, 56, 56))[-1] == "s"
    # 49 times, 512 * 9 = 4608, 64 * 9 = 576: a late layer's inputs.
    assert reuse_order(conv("late", 512, 64, 7, 7)) == "snm"


def test_a_kernel_that_no_buffer_holds_is_told():
    with pytest.raises(UserError, match=r"no tile of layer 'big' fits") as caught:
        best_tiling(conv("big", 1, 1, 8, 8, 7), equal_buffers(8))
    assert "49 bytes" in caught.value.hint


def test_the_full_size_unet_has_the_multiplications_that_pytorch_counts():
    """402.19 G: diffusers' module on the meta device, half of torch's FlopCounterMode."""
    macs = dict.fromkeys(("conv", "linear", "attention"), 0)
    for each in sd2_unet():
        macs[each.kind] += each.macs
    assert {kind: round(count / 1e9, 2) for kind, count in macs.items()} == {
        "conv": 209.24, "linear": 129.92, "attention": 63.03,
    }  # fmt: skip
