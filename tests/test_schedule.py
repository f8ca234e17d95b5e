"""Scheduling layers together: against all schedules, against the buffers row by row, and by hand."""

import functools

import numpy as np
import pytest
from hardware_layers import layer
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.hardware.networks import NETWORKS, conv
from outzoom.hardware.schedule import Link, group_of, traffic
from outzoom.hardware.tiling import Buffers, Traffic, best_tiling, compulsory, equal_buffers, padding
from outzoom.runtime.errors import UserError


@st.composite
def networks(draw, most=4):
    """A chain of small convolutions with pooling, upsampling, skips and missing links between some."""
    layers, links = [], []
    channels, side = draw(st.integers(1, 3)), draw(st.integers(4, 9))
    for index in range(draw(st.integers(2, most))):
        kernel, stride = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (2, 2)]))
        padded = draw(st.booleans()) and kernel == 3
        out = (side + 2 * padded - kernel) // stride + 1
        if out < 1:
            break
        width = draw(st.integers(1, 4))
        layers.append(
            layer(width, channels, (out, out), (kernel, kernel), stride, inside=(side, side), name=str(index))
        )
        link = draw(st.sampled_from([Link(), Link(kept=True), Link(share=0.5), Link(upsample=2), "pool", None]))
        side = out
        if link == "pool":
            link = Link(pool_kernel=min(2, out), pool_stride=min(2, out))
            side = max(out // 2, 1)
        elif link is not None:
            side *= link.upsample
        channels = width * (2 if link is not None and link.share < 1 else 1)
        links.append(link)
    return tuple(layers), tuple(links[: len(layers) - 1])


BUFFERS = st.builds(Buffers, st.integers(30, 400), st.integers(60, 300), st.integers(30, 400), st.booleans())


def least_of_all_schedules(layers, links, buffers):
    """The bytes of the best of every way to make groups, with every number of parts."""

    @functools.cache
    def least(start):
        if start == len(layers):
            return 0.0
        options = [best_tiling(layers[start], buffers)[1].total_bytes + least(start + 1)]
        for last in range(start + 1, len(layers)):
            for parts in range(1, layers[last].out_height + 1):
                plan = group_of(layers, links, buffers, start, last, parts)
                if plan is not None:
                    options.append(plan.total_bytes + least(last + 1))
        return min(options)

    return least(0)


@given(networks(), BUFFERS)
@settings(max_examples=80, deadline=None)
def test_dynamic_programming_finds_the_best_of_all_schedules(network, buffers):
    layers, links = network
    try:
        schedule = traffic(layers, buffers, links)
    except UserError:
        return
    assert schedule.total.total_bytes == pytest.approx(least_of_all_schedules(layers, links, buffers), rel=1e-12)
    assert [at for group in schedule.groups for at in range(group.first, group.last + 1)] == list(range(len(layers)))


def rows_of(layer, row):
    """The input rows that an output row reads."""
    before = padding(layer.out_height, layer.kernel_height, layer.stride, layer.input_height)
    start = row * layer.stride - before
    return {r for r in range(start, start + layer.kernel_height) if 0 <= r < layer.input_height}


def delivered(link, made, layer):
    """The rows of a layer's input that are whole when so many rows of the layer before are made."""
    rows = set()
    for row in range(layer.input_height):
        last = row * link.pool_stride + link.pool_kernel - 1 if link.pool_kernel > 1 else row // link.upsample
        if last < made:
            rows.add(row)
    return rows


def replay(layers, links, buffers, group, tiling=None):
    """Run a group row by row: everything must be on the chip when it is read, and never more than there is room for."""
    own, between = layers[group.first : group.last + 1], links[group.first : group.last]
    held = [set() for _ in between]
    come = [0] * len(own)
    pinned = sum(layers[at].weight_bytes for at in group.pinned)
    room = (buffers.input_bytes, buffers.output_bytes)
    for part in range(group.parts):
        for at, each in enumerate(own):
            end = group.ends[at][part]
            made = range(come[at], end)
            if at > 0:
                for row in made:
                    assert rows_of(each, row) <= held[at - 1]
            if at < len(between):
                seen = delivered(between[at], come[at], own[at + 1])
                held[at] |= delivered(between[at], end, own[at + 1]) - seen
            come[at] = end
            used = [0, 0]
            for index, rows in enumerate(held):
                consumer = own[index + 1]
                row_bytes = consumer.in_channels * consumer.groups * consumer.input_width
                used[(len(held) - 1 - index) % 2] += len(rows) * row_bytes
            if at == 0 and tiling is not None:  # a tile of the first input, on the side that its output is not on
                rows = min((tiling.rows - 1) * each.stride + each.kernel_height, each.input_height)
                used[len(held) % 2] += rows * each.in_channels * each.groups * each.input_width
            if buffers.shared:
                assert sum(used) + pinned <= buffers.total_bytes
            else:
                assert used[0] <= room[0] and used[1] <= room[1] and pinned <= buffers.weight_bytes
            if at > 0:
                future = [rows_of(each, row) for row in range(end, each.out_height)]
                held[at - 1] = held[at - 1] & set().union(*future)
    assert come == [each.out_height for each in own]


@given(networks(), BUFFERS)
@settings(max_examples=80, deadline=None)
def test_every_schedule_can_be_run_and_fits_its_buffers(network, buffers):
    layers, links = network
    for last in range(1, len(layers)):
        for first in range(last):
            for parts in range(1, layers[last].out_height + 1):
                plan = group_of(layers, links, buffers, first, last, parts)
                if plan is not None:
                    replay(layers, links, buffers, plan.group, plan.tiling)


@given(networks(), BUFFERS)
@settings(max_examples=60, deadline=None)
def test_no_schedule_moves_less_than_weights_first_inputs_and_last_outputs(network, buffers):
    layers, links = network
    try:
        schedule = traffic(layers, buffers, links)
    except UserError:
        return
    least = [compulsory(each) for each in layers]
    for each, bound in zip(schedule.layers, least, strict=True):
        assert each.traffic.weight_bytes >= bound.weight_bytes
    assert schedule.layers[0].traffic.input_bytes >= least[0].input_bytes
    assert schedule.layers[-1].traffic.output_bytes == least[-1].output_bytes
    alone = traffic(layers, buffers)
    assert schedule.total.total_bytes <= alone.total.total_bytes


TWO = (conv("one", 8, 4, 16, 16), conv("two", 2, 8, 16, 16))  # weights 288 and 144, maps 1024, 2048 and 512 bytes


def test_two_layers_that_fit_as_a_whole_move_only_what_is_outside():
    schedule = traffic(TWO, equal_buffers(4096), (Link(),))
    assert [(g.first, g.last, g.parts) for g in schedule.groups] == [(0, 1, 1)]
    assert [layer.traffic for layer in schedule.layers] == [Traffic(1024, 288, 0), Traffic(0, 144, 512)]


def test_where_the_whole_does_not_fit_parts_do_and_weights_stay():
    """A part of 2 of 16 rows: 4 rows of 8 channels between the layers, 512 bytes; of the input 4 rows of 64 bytes."""
    schedule = traffic(TWO, Buffers(640, 500, 640), (Link(),))
    (group,) = schedule.groups
    assert (group.first, group.last) == (0, 1) and group.parts > 1
    assert group.pinned == (0, 1)
    assert schedule.layers[1].traffic == Traffic(0, 144, 512)
    assert schedule.layers[0].traffic.weight_bytes == 288
    assert schedule.layers[0].traffic.input_bytes >= 1024


def test_weights_that_cannot_stay_come_again_with_every_part():
    plan = group_of(TWO, (Link(),), Buffers(4096, 300, 4096), 0, 1, 4)
    assert plan.group.pinned == (1,) or plan.group.pinned == ()
    plan = group_of(TWO, (Link(),), Buffers(4096, 150, 4096), 0, 1, 4)
    assert plan.group.pinned == ()
    assert [moved.weight_bytes for moved in plan.traffic] == [4 * 288, 4 * 144]


def test_an_output_that_others_read_is_written_but_not_read_back():
    schedule = traffic(TWO, equal_buffers(4096), (Link(kept=True),))
    assert [layer.traffic for layer in schedule.layers] == [Traffic(1024, 288, 2048), Traffic(0, 144, 512)]


def test_the_other_half_of_an_input_comes_from_dram():
    schedule = traffic(TWO, equal_buffers(4096), (Link(share=0.5),))
    assert schedule.layers[1].traffic == Traffic(1024, 144, 512)


def test_the_next_layer_is_cut_as_the_one_before():
    plan = group_of(TWO, (Link(),), equal_buffers(4096), 0, 1, 4)
    assert plan.group.ends == ((5, 9, 13, 16), (4, 8, 12, 16))  # one row ahead for the kernel below


def test_layers_without_a_link_or_of_other_repetitions_are_not_joined():
    assert len(traffic(TWO, equal_buffers(4096), (None,)).groups) == 2
    heads = (layer(4, 4, (8, 1), (1, 1), batch=2, kind="attention"), layer(4, 4, (8, 1), (1, 1), kind="linear"))
    assert len(traffic(heads, equal_buffers(4096), (Link(),)).groups) == 2


def test_attention_in_parts_never_writes_its_scores():
    """Queries times keys, softmax, times values, for two heads of 64 places and 8 channels."""
    layers = (
        layer(64, 8, (64, 1), (1, 1), batch=2, kind="attention"),
        layer(64, 64, (64, 1), (1, 1), batch=2, kind="softmax"),
        layer(8, 64, (64, 1), (1, 1), batch=2, kind="attention"),
    )
    schedule = traffic(layers, equal_buffers(2048), (Link(), Link()))
    assert schedule.total.total_bytes == 2 * 4 * 64 * 8
    assert [layer.traffic.output_bytes for layer in schedule.layers] == [0, 0, 1024]


def test_a_normalization_needs_the_whole_picture():
    layers = (TWO[0], layer(8, 8, (16, 16), (1, 1), kind="normalization"))
    assert len(traffic(layers, equal_buffers(1024), (Link(),)).groups) == 2
    assert len(traffic(layers, equal_buffers(2048), (Link(),)).groups) == 1


def test_links_must_fit_the_layers():
    with pytest.raises(UserError, match="2 layers have 1 links between them, got 2"):
        traffic(TWO, equal_buffers(4096), (Link(), Link()))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_layers_of_a_network_follow_each_other(name):
    network = NETWORKS[name]()
    for one, other, link in zip(network.layers[:-1], network.layers[1:], network.links, strict=True):
        if link is not None:
            assert other.groups * other.in_channels * link.share == one.out_channels * (
                1 / link.upsample**2 if link.upsample > 1 else 1
            )
            if link.share == 1:
                side = one.out_height * link.upsample
                assert other.input_height == (side - link.pool_kernel) // link.pool_stride + 1 or name == "resnet18"


def test_networks_have_the_published_multiplications_and_weights():
    found = {}
    for name, make in NETWORKS.items():
        network = make()
        macs, weights = (sum(getattr(each, field) for each in network.layers) for field in ("macs", "weight_elements"))
        found[name] = (round(macs / 1e9, 3), weights)
    assert found == {
        "alexnet": (0.724, 60_954_656),
        "vgg16": (15.470, 138_344_128),
        "mobilenet_v1": (0.569, 4_209_088),
        "unet": (150.428, 31_023_808),
        "resnet18": (1.814, 11_678_912),
    }


def test_a_group_of_a_real_network_replays():
    network = NETWORKS["mobilenet_v1"]().convolutions()
    buffers = equal_buffers(64 << 10)
    schedule = traffic(network.layers, buffers, network.links)
    joined = [group for group in schedule.groups if group.last > group.first]
    assert joined
    for group in joined:
        replay(network.layers, network.links, buffers, group)
    assert np.isfinite(schedule.total.total_bytes)
