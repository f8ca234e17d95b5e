"""AWQ's factors in a graph: folded into what makes a layer's input, or a node of their own."""

import itertools

import pytest
from graphs import block_inputs, block_statistics, loud_block, run, snr_db

from outzoom.compress.inputs import Inputs
from outzoom.compress.packing import PackedWriter
from outzoom.compress.recipe import Int4, KMeans, Prune, Recipe, Rule
from outzoom.compress.weights import compress_weights

AWQ = Int4(32, rounding="awq")


@pytest.fixture
def compress(tmp_path):
    """Compress a block by rules that look at its inputs."""
    numbers = itertools.count()
    known = Inputs(block_statistics(loud_block()), tmp_path)

    def compressed(*rules):
        writer = PackedWriter(tmp_path / f"packed{next(numbers)}.safetensors", False)
        recipe = Recipe("test", "", "float32", "float32", 0.0, rules=rules)
        return compress_weights(loud_block(), "unet", recipe, writer, known)[0]

    return compressed


def added_nodes(model):
    """How many nodes divide an input."""
    return sum(node.op_type == "Mul" for node in model.graph) - 1  # the gated product has one


@pytest.mark.parametrize("engine", ["int4", "float32"])
def test_factors_take_no_node_where_they_can_be_folded(compress, engine):
    exact = run(loud_block(), block_inputs(100))
    made = compress(Rule(store=AWQ, engine=engine))
    assert added_nodes(made) == 1  # before the last layer, whose input is a sum
    nearest = compress(Rule(store=Int4(32), engine=engine))
    assert snr_db(exact, run(made, block_inputs(100))) > snr_db(exact, run(nearest, block_inputs(100))) + 3


@pytest.mark.parametrize(
    ("other", "nodes"),
    # one for each of AWQ's layers whose input can't be divided in what makes it
    [
        (Rule(layers=("to_k*",), engine="float32"), 3),  # to_q and to_v share their input with a layer that has none
        (Rule(layers=("to_k*",), store=Int4(16, rounding="awq")), 4),  # or has blocks of its own
        (Rule(layers=("to_v*",), store=KMeans(8)), 4),  # to_q, to_k, and to_out: a codebook is of all of to_v's rows
        (Rule(layers=("proj*",), prune=Prune(0.1), store=AWQ), 3),  # proj has zeros, which down's input is made with
    ],
)
def test_factors_are_not_folded_where_that_would_change_what_a_rule_does(compress, other, nodes):
    made = compress(other, Rule(store=AWQ))
    assert added_nodes(made) == nodes
    assert snr_db(run(loud_block(), block_inputs(100)), run(made, block_inputs(100))) > 12
