"""DRAM: energies by the data sheet, rows by following every address, time by an event-driven simulation."""

import itertools
from collections import deque

import numpy as np
import pytest
from hardware_layers import layer, layers, operand_tiles, repeated_tiles_of, window
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.hardware.dram import MAPPINGS, QUEUE_BURSTS, DramCost, Mapping, cost, count_rows, layer_cost, total
from outzoom.hardware.dram_profile import FOLDER, known_drams, read_dram
from outzoom.hardware.networks import NETWORKS, conv
from outzoom.hardware.schedule import Link, traffic
from outzoom.hardware.streams import ALIGNMENT_BYTES, INPUT, OUTPUT, PARTIAL_SUM, WEIGHT, Stream, stream
from outzoom.hardware.tiling import ORDERS, Tiling, best_tiling, equal_buffers, traffic_of
from outzoom.runtime.errors import UserError

DDR3 = read_dram("ddr3-1600")


def test_ddr3_energies_are_those_of_microns_power_calculator():
    """Within 0.5%, as the calculator rounds."""
    assert DDR3.activate_joules == pytest.approx(3.619e-9, rel=0.005)
    assert DDR3.read_joules == pytest.approx(1.0125e-9, rel=0.005)
    assert DDR3.write_joules == pytest.approx(1.05e-9, rel=0.005)


def test_ddr3_powers_are_those_of_microns_power_calculator():
    t = DDR3.timing
    milliwatts = {
        "precharged, clock off": DDR3.background_watts(open_rows=False, powered_down=True),
        "precharged": DDR3.background_watts(open_rows=False),
        "active, clock off": DDR3.background_watts(powered_down=True),
        "active": DDR3.background_watts(),
        "activate": DDR3.activate_joules / (t.trc_ns * 1e-9),
        "read": DDR3.read_joules / (t.burst_ns * 1e-9),
        "write": DDR3.write_joules / (t.burst_ns * 1e-9),
        "refresh": DDR3.refresh_watts,
    }
    assert {name: pytest.approx(value * 1e3, rel=0.006) for name, value in milliwatts.items()} == {
        "precharged, clock off": 52.5, "precharged": 63, "active, clock off": 60, "active": 67.5,
        "activate": 76.2, "read": 202.5, "write": 210, "refresh": 5.2,
    }  # fmt: skip


def test_a_hit_and_a_conflict_cost_what_public_tables_say_of_ddr3():
    """Per bit: 15.8 pJ for a hit, 72.4 for a conflict; Accelergy takes 70 for DDR3 on average."""
    bits = DDR3.burst_bytes * 8
    assert DDR3.read_joules / bits == pytest.approx(15.8e-12, rel=0.005)
    assert (DDR3.read_joules + DDR3.activate_joules) / bits == pytest.approx(72.4e-12, rel=0.005)


def test_lpddr4_takes_the_8_picojoules_a_bit_that_accelergy_has_for_it():
    dram = read_dram("lpddr4-3200")
    assert dram.read_joules / (dram.burst_bytes * 8) == pytest.approx(8e-12, rel=0.1)


def test_later_generations_read_a_bit_for_less():
    names = ("ddr3-1600", "lpddr4-3200", "lpddr4x-4266", "lpddr5-6400", "lpddr5x-8533")
    energies = [read_dram(name).read_joules / read_dram(name).burst_bytes for name in names]
    assert energies == sorted(energies, reverse=True)


def test_peak_bandwidths():
    rates = {
        "ddr3-1600": 1.6,
        "lpddr4-3200": 6.4,
        "lpddr4x-4266": 8.53,
        "lpddr5-6400": 12.8,
        "lpddr5x-7500": 15,
        "lpddr5x-8533": 17.07,
    }
    assert {name: pytest.approx(read_dram(name).peak_bytes_per_s / 1e9, rel=2e-3) for name in known_drams()} == rates
    assert DDR3.with_channels(2, chips=8).peak_bytes_per_s == 16 * DDR3.peak_bytes_per_s


def one_run(start, length, operand=INPUT):
    return Stream(np.array([start]), np.array([length]), np.array([operand]))


def test_reading_a_row_opens_it_once():
    counts = count_rows(one_run(0, 1024), DDR3, MAPPINGS["row-major"])
    assert counts.bursts[INPUT] == 128
    assert counts.misses[INPUT] == 1 and counts.conflicts[INPUT] == 0


def test_reading_on_meets_every_bank_before_it_closes_a_row():
    counts = count_rows(one_run(0, 12 * 1024), DDR3, MAPPINGS["row-major"])
    assert (counts.misses[INPUT], counts.conflicts[INPUT]) == (8, 4)
    bank_by_bank = count_rows(one_run(0, 12 * 1024), DDR3, MAPPINGS["row-major, bank by bank"])
    assert (bank_by_bank.misses[INPUT], bank_by_bank.conflicts[INPUT]) == (1, 11)


def test_banks_hide_the_opening_of_rows():
    run = one_run(0, 100 * 1024)
    assert count_rows(run, DDR3, MAPPINGS["row-major"]).stall_ns.sum() == DDR3.timing.trcd_ns  # of the very first
    slow = count_rows(run, DDR3, MAPPINGS["row-major, bank by bank"]).stall_ns.sum()
    recovery = DDR3.timing.trtp_ns - DDR3.timing.burst_ns
    assert slow == pytest.approx(13.75 + 99 * (13.75 + 13.75 + recovery))


def test_half_bursts_are_paid_whole():
    assert count_rows(one_run(6, 4), DDR3, MAPPINGS["row-major"]).bursts[INPUT] == 2


def test_streaming_costs_an_eighth_of_a_nanojoule_a_byte():
    moved = traffic_of(conv("c", 1, 1, 512, 512, 1), Tiling("smn", 1, 1, 512, 512))
    found = layer_cost(conv("c", 1, 1, 512, 512, 1), Tiling("smn", 1, 1, 512, 512), moved, DDR3, MAPPINGS["row-major"])
    reading = found.read_joules / moved.read_bytes
    assert (reading + DDR3.activate_joules / 1024) * 1e9 == pytest.approx(0.130, rel=0.005)


def keys_of(layer, step):
    return {operand: (step[0], key) for operand, (key, _) in operand_tiles(layer, step[1:]).items()}


def addresses(layer, tiling, contiguous):
    """Every run of a walk through the nest, from addresses of single elements."""
    ih, iw = layer.input_height, layer.input_width
    kernel = layer.kernel_height * layer.kernel_width
    bits = {"input": layer.input_bits, "weight": layer.weight_bits, "output": layer.output_bits}

    def elements(operand, step):
        repetition, m, n, rows, columns = step
        own = {"input": layer.in_channels, "output": layer.out_channels // layer.groups}
        m, n = (
            tuple(repetition * size + each for each in piece) for size, piece in ((own["output"], m), (own["input"], n))
        )
        if operand == "weight":
            n = step[2]
            return [
                (c * layer.in_channels + i) * kernel + k for c in range(*m) for i in range(*n) for k in range(kernel)
            ]
        if operand == "output":
            box, height, width = (m, rows, columns), layer.out_height, layer.out_width
        else:
            high = window(rows, layer.out_height, layer.kernel_height, layer.stride, ih)
            wide = window(columns, layer.out_width, layer.kernel_width, layer.stride, iw)
            box, height, width = (n, high, wide), ih, iw
        return [(c * height + y) * width + x for c, y, x in itertools.product(*(range(*each) for each in box))]

    sizes = {
        "input": layer.batch * layer.groups * layer.in_channels * ih * iw,
        "weight": layer.weight_elements,
        "output": layer.output_elements,
    }
    stored, ends = {}, dict.fromkeys(sizes, 0)
    steps = list(repeated_tiles_of(layer, tiling))
    for step in steps:
        for operand, key in keys_of(layer, step).items():
            if (operand, key) not in stored:
                stored[operand, key] = ends[operand]
                ends[operand] += len(elements(operand, step))
    bases, base = {}, 0
    for operand in ("input", "weight", "output"):
        bases[operand] = base
        size = max(sizes[operand], ends[operand]) * bits[operand]
        base += -(-size // (8 * ALIGNMENT_BYTES)) * ALIGNMENT_BYTES

    def runs(operand, step, kind):
        own = elements(operand, step)
        if operand in contiguous:
            start = stored[operand, keys_of(layer, step)[operand]]
            own = list(range(start, start + len(own)))
        width = bits[operand] // 8
        for _, group in itertools.groupby(enumerate(own), lambda pair: pair[1] - pair[0]):
            group = [element for _, element in group]
            yield bases[operand] + group[0] * width, len(group) * width, kind

    seen = set()
    for index, step in enumerate(steps):
        keys = keys_of(layer, step)
        before = keys_of(layer, steps[index - 1]) if index > 0 else {}
        after = keys_of(layer, steps[index + 1]) if index + 1 < len(steps) else {}
        for operand, kind in (("input", INPUT), ("weight", WEIGHT)):
            if before.get(operand) != keys[operand]:
                yield from runs(operand, step, kind)
        if before.get("output") != keys["output"] and keys["output"] in seen:
            yield from runs("output", step, PARTIAL_SUM)
        seen.add(keys["output"])
        if after.get("output") != keys["output"]:
            yield from runs("output", step, OUTPUT)


@st.composite
def tiled_layers(draw):
    found = draw(layers(most=5).filter(lambda each: min(each.input_bits, each.weight_bits, each.output_bits) >= 8))
    sizes = (found.out_channels // found.groups, found.in_channels, found.out_height, found.out_width)
    tile = [-(-size // draw(st.integers(1, size))) for size in sizes]
    return found, Tiling(draw(st.sampled_from(ORDERS)), *tile)


CONTIGUOUS = st.sets(st.sampled_from(["input", "weight", "output"]))


@given(tiled_layers(), CONTIGUOUS)
@settings(max_examples=60, deadline=None)
def test_runs_are_those_of_walking_through_the_loops_element_by_element(tiled, contiguous):
    found = stream(*tiled, contiguous)
    expected = list(addresses(*tiled, contiguous))
    assert list(zip(found.start.tolist(), found.length.tolist(), found.operand.tolist(), strict=True)) == expected


@given(tiled_layers(), CONTIGUOUS, st.data())
@settings(max_examples=30, deadline=None)
def test_any_part_of_a_stream_is_a_part_of_the_whole(tiled, contiguous, data):
    steps = len(list(repeated_tiles_of(*tiled)))
    at = data.draw(st.integers(0, steps))
    parts = [stream(*tiled, contiguous, steps=span) for span in ((0, at), (at, steps))]
    whole = stream(*tiled, contiguous)
    assert np.concatenate([part.start for part in parts]).tolist() == whole.start.tolist()


# A memory so small that rows and banks change all the time: 2 channels, 4 banks, rows of 4 bursts of 8 bytes.
TINY = DDR3.with_channels(2)
TINY = type(TINY)(
    "tiny", type(TINY.organization)(2, 1, 4, 64, 32, 8, "made up", "made up"), TINY.timing, TINY.rails
)  # fmt: skip


def followed(runs, dram, levels):
    """Hits, misses and conflicts of each kind of run, burst by burst through the open rows of every bank."""
    sizes = {
        "column": dram.row_bytes // dram.burst_bytes, "channel": dram.organization.channels,
        "bank": dram.organization.banks, "row": 1 << 60,
    }  # fmt: skip
    open_rows, found = {}, np.zeros((3, 4), int)
    for start, length, operand in runs:
        for burst in range(start // dram.burst_bytes, (start + length - 1) // dram.burst_bytes + 1):
            place, rest = {}, burst
            for level in levels:
                rest, place[level] = divmod(rest, sizes[level])
            bank = (place["channel"], place["bank"])
            outcome = 1 if bank not in open_rows else 0 if open_rows[bank] == place["row"] else 2
            open_rows[bank] = place["row"]
            found[outcome, operand] += 1
    return found


@given(tiled_layers(), CONTIGUOUS, st.permutations(["column", "channel", "bank"]))
@settings(max_examples=60, deadline=None)
def test_hits_misses_and_conflicts_are_those_of_following_every_burst(tiled, contiguous, levels):
    mapping = Mapping("any", frozenset(contiguous), (*levels, "row"))
    hits, misses, conflicts = followed(addresses(*tiled, contiguous), TINY, mapping.levels)
    counts = count_rows(stream(*tiled, contiguous), TINY, mapping)
    assert counts.misses.tolist() == misses.tolist()
    assert counts.conflicts.tolist() == conflicts.tolist()
    assert (counts.bursts - counts.misses - counts.conflicts).tolist() == hits.tolist()


def simulated_ns(runs, dram):
    """A channel's time by events: each bank has a state, the bus sends one burst after the other."""
    t = dram.timing
    banks, acts, bus, starts = {}, deque([-1e9] * 4, 4), 0.0, deque([0.0] * QUEUE_BURSTS, QUEUE_BURSTS)
    per_row = dram.row_bytes // dram.burst_bytes
    for start, length, operand in zip(runs.start, runs.length, runs.operand, strict=True):
        for burst in range(start // dram.burst_bytes, (start + length - 1) // dram.burst_bytes + 1):
            row, bank = divmod(burst // per_row, dram.organization.banks)
            known = starts[0]
            ready = 0.0
            state = banks.get(bank)
            if state is None or state["row"] != row:
                act = known
                if state is not None:
                    act = max(known, state["free"], state["act"] + t.tras_ns) + t.trp_ns
                    act = max(act, state["act"] + t.trc_ns)
                act = max(act, acts[-1] + t.trrd_ns, acts[0] + t.tfaw_ns)
                acts.append(act)
                state = banks[bank] = {"row": row, "act": act, "free": 0.0}
                ready = act + t.trcd_ns
            begin = max(bus, ready)
            bus = begin + t.burst_ns
            starts.append(begin)
            state["free"] = bus + t.twr_ns if operand == OUTPUT else max(begin + t.trtp_ns, bus)
    return bus


@pytest.mark.parametrize("name", ["row-major", "by tiles"])
@pytest.mark.parametrize("dram", ["ddr3-1600", "lpddr5-6400"])
def test_time_is_that_of_a_simulation_by_events(name, dram):
    """Within 5%: pauses that follow from earlier pauses are left out."""
    each = conv("c", 64, 64, 28, 28)
    tiling, _ = best_tiling(each, equal_buffers(8 << 10))
    runs = stream(each, tiling, MAPPINGS[name].contiguous)
    counts = count_rows(runs, read_dram(dram), MAPPINGS[name])
    modelled = counts.bursts.sum() * read_dram(dram).timing.burst_ns + counts.stall_ns.sum()
    assert modelled == pytest.approx(simulated_ns(runs, read_dram(dram)), rel=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from(["ddr3-1600", "lpddr5-6400"]))
@settings(max_examples=30, deadline=None)
def test_time_of_runs_here_and_there_is_that_of_a_simulation_by_events(seed, longest, dram):
    """Within 15%, the more they wait for each other the less exact."""
    random = np.random.default_rng(seed)
    start, length = random.integers(0, 1 << 18, 200) * 8, random.integers(1, longest + 1, 200) * 8
    runs = Stream(start, length, random.choice([INPUT, OUTPUT], 200))
    counts = count_rows(runs, read_dram(dram), MAPPINGS["row-major"])
    modelled = counts.bursts.sum() * read_dram(dram).timing.burst_ns + counts.stall_ns.sum()
    assert modelled == pytest.approx(simulated_ns(runs, read_dram(dram)), rel=0.15)


def test_windows_of_a_long_walk_tell_what_the_whole_does():
    each = conv("c", 128, 128, 28, 28)
    tiling, moved = best_tiling(each, equal_buffers(4 << 10))
    mapping = MAPPINGS["row-major"]
    found = layer_cost(each, tiling, moved, DDR3, mapping)
    whole = count_rows(stream(each, tiling), DDR3, mapping)
    assert found.activations == pytest.approx((whole.misses + whole.conflicts).sum(), rel=0.03)
    assert found.read_bursts + found.write_bursts == pytest.approx(whole.bursts.sum(), rel=0.03)


def test_time_and_energy_add_up():
    network = NETWORKS["alexnet"]()
    costs = cost(traffic(network.layers, equal_buffers(64 << 10)).layers, DDR3, MAPPINGS["by tiles"])
    found = total(costs)
    parts = (found.activate_joules, found.read_joules, found.write_joules, found.standby_joules, found.refresh_joules)
    assert found.energy_joules == pytest.approx(sum(parts))
    assert found.standby_joules == pytest.approx(DDR3.background_watts() * found.time_s)
    assert found.row_hits + found.activations == pytest.approx(found.read_bursts + found.write_bursts)
    assert found.time_s > (found.read_bursts + found.write_bursts) * 5e-9


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "mobilenet_v1"])
def test_tiles_stored_as_tiles_open_fewer_rows_and_take_less_time(name):
    schedule = traffic(NETWORKS[name]().layers[:8], equal_buffers(64 << 10))
    plain, tiled = (total(cost(schedule.layers, DDR3, MAPPINGS[m])) for m in ("row-major", "by tiles"))
    assert tiled.activations < plain.activations
    assert tiled.time_s < plain.time_s
    assert tiled.access_joules < plain.access_joules


def test_what_stays_on_the_chip_costs_nothing():
    both = (conv("one", 8, 4, 16, 16), conv("two", 2, 8, 16, 16))
    schedule = traffic(both, equal_buffers(4096), (Link(),))
    first, second = cost(schedule.layers, DDR3, MAPPINGS["by tiles"])
    assert first.write_bursts == 0
    assert second.read_bursts == -(-144 // 8)
    nothing = layer_cost(both[0], schedule.layers[0].tiling, type(schedule.total)(), DDR3, MAPPINGS["by tiles"])
    assert nothing == DramCost()


def test_a_layer_without_a_product_reads_and_writes_once():
    added = layer(16, 16, (64, 64), (1, 1), kind="elementwise")
    (found,) = cost(traffic((added,), equal_buffers(4096)).layers, DDR3, MAPPINGS["row-major"])
    assert (found.read_bursts, found.write_bursts) == (8192, 8192)


def test_an_unknown_dram_is_told_with_those_that_are_known():
    with pytest.raises(UserError, match="there is no DRAM 'ddr3-1601'; known: ddr3-1600"):
        read_dram("ddr3-1601")


def test_a_profile_that_makes_no_sense_is_told(tmp_path):
    text = (FOLDER / "ddr3-1600.toml").read_text("utf-8")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace("banks = 8", "banks = 0"), "utf-8")
    with pytest.raises(UserError, match="sizes and times above 0"):
        read_dram(str(wrong))
    wrong.write_text(text.replace("banks = 8", "banks = 'eight'"), "utf-8")
    with pytest.raises(UserError, match=r"wrong: Expected `int`.*banks"):
        read_dram(str(wrong))
    with pytest.raises(UserError, match="can't be read"):
        read_dram(str(tmp_path / "missing.toml"))


@pytest.mark.parametrize("name", known_drams())
def test_every_figure_of_a_profile_has_a_source(name):
    dram = read_dram(name)
    for part in (dram.organization, dram.timing, *dram.rails):
        assert len(part.source) > 5
        assert part.confidence in ("read", "derived", "second-hand", "remembered")
