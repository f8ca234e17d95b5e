"""Mixed precision under a budget: by hand, beside every combination there is, and what always holds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outzoom.compress.mixed import Option, choose, smallest_bytes

# what is gained for a byte: layer 0: 8 - 3 over 1, then 3 - 2 over 1; layer 1: 20 - 2 over 2
BY_HAND = [[Option(1, 8), Option(2, 3), Option(3, 2)], [Option(2, 20), Option(4, 2)]]


@pytest.mark.parametrize(("budget", "chosen"), [(3, [0, 0]), (4, [1, 0]), (5, [0, 1]), (6, [1, 1]), (7, [2, 1])])
def test_the_steps_that_gain_most_for_each_byte_come_first(budget, chosen):
    assert choose(BY_HAND, budget) == chosen


def test_a_budget_below_the_smallest_is_refused():
    assert smallest_bytes(BY_HAND) == 3
    with pytest.raises(ValueError, match="at least 3 bytes, the budget is 2"):
        choose(BY_HAND, 2)


def test_an_option_that_is_larger_and_worse_is_never_taken():
    assert choose([[Option(1, 5), Option(2, 9)]], 10) == [0]


options = st.lists(st.builds(Option, st.integers(1, 50), st.floats(0, 100)), min_size=1, max_size=4)
networks = st.lists(options, min_size=1, max_size=4)


def totals(layers, chosen):
    picked = [options[index] for options, index in zip(layers, chosen, strict=True)]
    return sum(option.size_bytes for option in picked), sum(option.error for option in picked)


@given(networks, st.integers(0, 150))
def test_the_choice_fits_and_is_near_the_best_of_all(layers, more):
    budget = smallest_bytes(layers) + more
    size, error = totals(layers, choose(layers, budget))
    assert size <= budget
    everything = itertools.product(*(range(len(options)) for options in layers))
    fitting = [totals(layers, chosen)[1] for chosen in everything if totals(layers, chosen)[0] <= budget]
    # between two points of the hull it is off by less than the step of one layer that did not fit
    step = max(max(option.error for option in options) - min(option.error for option in options) for options in layers)
    assert min(fitting) - 1e-9 <= error <= min(fitting) + step + 1e-9


@given(networks)
def test_with_room_for_all_each_layer_has_its_least_error(layers):
    chosen = choose(layers, sum(max(option.size_bytes for option in options) for options in layers))
    for options, index in zip(layers, chosen, strict=True):
        assert options[index].error == min(option.error for option in options)
