"""Banks of on-chip buffers, by hand."""

import numpy as np
import pytest

from outzoom.hardware.sram import Sram, access_joules, bank_of, read_cost
from outzoom.runtime.errors import UserError

FOUR = Sram(4 * 8 * 8, banks=4)  # of 8 words each


def test_neighbours_lie_in_other_banks_or_in_the_same():
    words = np.arange(10)
    assert bank_of(words, FOUR, "interleaved").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert bank_of(words, FOUR, "blocked").tolist() == [0] * 8 + [1] * 2


def test_spread_words_are_read_at_once_and_blocked_ones_in_turn():
    spread = read_cost((1, 4, 4), (1, 1, 4), FOUR, "interleaved")
    blocked = read_cost((1, 4, 4), (1, 1, 4), FOUR, "blocked")
    assert (spread.cycles, spread.conflict_cycles, spread.active_banks) == (4, 0, 4)
    assert (blocked.cycles, blocked.conflict_cycles, blocked.active_banks) == (16, 12, 2)
    assert spread.energy_joules == blocked.energy_joules


def test_a_stride_of_the_banks_collides_all_the_same():
    """Channels of 4 words lie a whole turn of the banks apart."""
    assert read_cost((4, 1, 4), (4, 1, 1), FOUR).conflict_cycles == 12
    assert read_cost((4, 1, 3), (4, 1, 1), FOUR).conflict_cycles == 0


def test_blocks_at_the_edge_are_smaller():
    assert read_cost((1, 1, 5), (1, 1, 4), FOUR).cycles == 2


def test_energies_are_horowitz_points_and_between():
    assert access_joules(8 << 10) == pytest.approx(10e-12)
    assert access_joules(32 << 10) == pytest.approx(20e-12)
    assert access_joules(1 << 20) == pytest.approx(100e-12)
    assert access_joules(16 << 10) == pytest.approx(14.14e-12, rel=1e-3)  # the root of the size, up to 32 KB
    assert access_joules(8 << 10, word_bytes=4) == pytest.approx(5e-12)
    assert access_joules(2 << 10) == pytest.approx(5e-12)


def test_small_banks_cost_less_than_one_memory():
    assert read_cost((1, 1, 8), (1, 1, 8), Sram(1 << 20, 16)).energy_joules < 8 * access_joules(1 << 20)


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match="a tile of 33 words doesn't fit a buffer of 32"):
        read_cost((1, 1, 33), (1, 1, 1), FOUR)
    with pytest.raises(UserError, match="banks of whole words"):
        Sram(100, 8)
