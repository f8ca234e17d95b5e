"""Shared weights: the example of the article, optimal partitions by brute force, and scikit-learn's k-means."""

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outzoom.compress import kmeans
from outzoom.compress.kmeans import SharedWeights, compress, decompress, inertia

ARTICLE = np.array(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0, -1.03], [1.87, 0, 1.53, 1.49]],
    np.float32,
)
LARGE = 80_000  # elements: enough for the histogram of float16 patterns


def array(*values):
    return np.array(values, np.float32)


def samples(kind, count, seed=5):
    random = np.random.default_rng(seed)
    drawn = {
        "gaussian": lambda: random.standard_normal(count),
        "laplace": lambda: random.laplace(size=count),
        "heavy tails": lambda: random.standard_t(3, count),
        "bimodal": lambda: random.choice([-1, 1], count) + 0.2 * random.standard_normal(count),
    }
    return (0.02 * drawn[kind]()).astype(np.float32)


def halves(kind, count):
    return samples(kind, count).astype(np.float16).astype(np.float32)


def least_inertia(weight, importance, entries, keep_zero):
    """Over all partitions of the sorted values into runs; the run with zero in it stands at zero if that is kept."""
    values = np.unique(np.append(weight, 0) if keep_zero else weight).astype(np.float64)
    masses = np.array([importance[weight == value].sum() for value in values], np.float64)
    least = np.inf
    for cuts in combinations(range(1, values.size), min(entries, values.size) - 1):
        total = 0.0
        for run in np.split(np.arange(values.size), cuts):
            mass = masses[run].sum()
            fixed = mass == 0 or (keep_zero and 0 in values[run])
            centroid = 0 if fixed else values[run] @ masses[run] / mass
            total += masses[run] @ (values[run] - centroid) ** 2
        least = min(least, total)
    return least


# By hand


def test_the_articles_example_has_its_codebook_and_its_indices():
    shared = compress(ARTICLE, 2)
    assert np.allclose(shared.codebook, [[-1.00, 0.00, 1.50, 2.00]], rtol=0, atol=1e-6)
    assert shared.indices.tolist() == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    assert shared.indices.dtype == np.uint8
    assert shared.codebook.dtype == np.float32


def test_the_articles_example_takes_160_bits_where_it_took_512():
    shared = compress(ARTICLE, 2)
    assert (shared.bits, shared.groups) == (2, 1)
    assert shared.size_bits() == 16 * 2 + 4 * 32 == 160
    assert shared.size_bits(entry_bits=16) == 16 * 2 + 4 * 16


def test_the_inertia_is_the_sum_of_squared_errors():
    weight = array(0, 1, 10, 12)
    shared = compress(weight, 1)  # entries 0.5 and 11
    assert shared.codebook.tolist() == [[0.5, 11]]
    assert inertia(weight, shared) == 0.5**2 + 0.5**2 + 1 + 1


def test_a_weight_of_more_importance_draws_its_entry_and_counts_more():
    weight = array(0, 1, 10, 12)
    shared = compress(weight, 1, importance=[3, 1, 1, 1])
    assert shared.codebook.tolist() == [[0.25, 11]]
    assert inertia(weight, shared, [3, 1, 1, 1]) == 3 * 0.25**2 + 0.75**2 + 1 + 1


def test_the_importance_of_the_inputs_holds_for_every_output():
    weight = array([0, 1, 10], [0, 1, 12])
    shared = compress(weight, 1, importance=[1, 3, 5])
    assert shared.codebook.tolist() == [[0.75, 11]]
    assert inertia(weight, shared, [1, 3, 5]) == 2 * (0.75**2 + 3 * 0.25**2) + 5 + 5


def test_a_weight_of_no_importance_moves_no_entry_but_gets_the_nearest():
    shared = compress(array(0, 1, 4, 10, 12), 1, importance=[1, 1, 0, 1, 1])
    assert shared.codebook.tolist() == [[0.5, 11]]
    assert shared.indices.tolist() == [0, 0, 0, 1, 1]


def test_each_group_of_channels_has_its_codebook():
    weight = array([0, 1], [10, 12], [-5, -5], [5, 6])
    shared = compress(weight, 1, groups=2)
    assert np.allclose(shared.codebook, [[0.5, 11], [-5, 5.5]], rtol=0, atol=0)
    assert shared.indices.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert decompress(shared).tolist() == [[0.5, 0.5], [11, 11], [-5, -5], [5.5, 5.5]]
    assert inertia(weight, shared) == 0.25 + 0.25 + 1 + 1 + 0 + 0 + 0.25 + 0.25
    assert shared.size_bits() == 8 * 1 + 2 * 2 * 32


def test_a_group_whose_importance_is_zero_throughout_counts_its_weights_alike():
    weight = array([0, 1, 10, 12], [0, 1, 10, 12])
    shared = compress(weight, 1, groups=2, importance=[[3, 1, 1, 1], [0, 0, 0, 0]])
    assert shared.codebook.tolist() == [[0.25, 11], [0.5, 11]]
    assert inertia(weight, shared, np.zeros(4)) == 0


def test_few_distinct_values_are_kept_and_spare_entries_repeat_the_last():
    shared = compress(array(3, -1, 3, 0.1), 2)
    assert shared.codebook.tolist() == [[-1, np.float32(0.1), 3, 3]]
    assert decompress(shared).tolist() == array(3, -1, 3, 0.1).tolist()


def test_minus_zero_is_no_value_of_its_own():
    assert compress(array(-0.0, 1, 0.0, 2, 3), 2).codebook.tolist() == [[0, 1, 2, 3]]


def test_few_distinct_values_are_kept_even_where_they_have_no_importance():
    weight = array(3, -1, 3, 0.1)
    assert decompress(compress(weight, 2, importance=[0, 1, 0, 1])).tolist() == weight.tolist()


def test_spare_entries_repeat_the_last_where_too_few_weights_have_importance():
    shared = compress(array(1, 2, 3, 4, 5), 2, importance=[0, 1, 0, 1, 0])
    assert shared.codebook.tolist() == [[2, 4, 4, 4]]


@pytest.mark.parametrize("keep_zero", [False, True])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.7])
@pytest.mark.parametrize("count", [1, LARGE])
def test_a_constant_weight_is_kept(value, count, keep_zero):
    weight = np.full((count, 1), value, np.float32)
    assert np.array_equal(decompress(compress(weight, 4, keep_zero=keep_zero)), weight)


def test_zero_is_an_entry_if_it_is_to_be_kept():
    weight = array(0, 0, 0.5, 1, 1.25)
    shared = compress(weight, 1, keep_zero=True)
    # {0, 0, 0.5} {1, 1.25}: 0.25 + 0.03125, less than {0, 0} {0.5, 1, 1.25}: 0.292.
    assert shared.codebook.tolist() == [[0, 1.125]]
    assert shared.indices.tolist() == [0, 0, 0, 1, 1]
    assert np.allclose(compress(weight, 1).codebook, [[0.5 / 3, 1.125]])


def test_zero_is_an_entry_though_no_weight_is_zero():
    assert compress(array(1, 2, 7, 9), 2, keep_zero=True).codebook.tolist() == [[0, 1.5, 7, 9]]
    assert compress(array(7, 9), 2, keep_zero=True).codebook.tolist() == [[0, 7, 9, 9]]


def test_zeros_of_a_pruned_weight_stay_at_next_to_no_cost():
    weight = halves("gaussian", LARGE)
    weight[::2] = np.where(weight[::2] > 0, 0.0, -0.0)
    shared = compress(weight, 3, keep_zero=True)
    assert np.count_nonzero(shared.codebook == 0) == 1
    assert np.all(decompress(shared)[::2] == 0)
    # A spike of half the weights draws an entry nearly to zero by itself: to have it at zero costs little.
    assert inertia(weight, shared) < 1.001 * inertia(weight, compress(weight, 3))


# What is refused


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_beyond_a_byte_are_refused(bits):
    with pytest.raises(ValueError, match=f"1 to 8 bits, not {bits}"):
        compress(ARTICLE, bits)


@pytest.mark.parametrize("groups", [0, 3, 8, -1])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    with pytest.raises(ValueError, match=f"{groups} groups do not divide the 4 channels"):
        compress(ARTICLE, 2, groups)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(hole):
    with pytest.raises(ValueError, match="NaN or infinity"):
        compress(array(1, hole, 2), 1)


@pytest.mark.parametrize("shape", [(), (0,), (4, 0)])
def test_a_weight_without_elements_or_axes_is_refused(shape):
    with pytest.raises(ValueError, match="no elements"):
        compress(np.zeros(shape, np.float32), 1)


@pytest.mark.parametrize("importance", [-1.0, np.nan, np.inf])
def test_an_importance_that_is_negative_or_not_finite_is_refused(importance):
    with pytest.raises(ValueError, match="finite and not negative"):
        compress(array(1, 2), 1, importance=[1, importance])


@pytest.mark.parametrize("shape", [(3,), (4, 1, 1), (5, 4)])
def test_an_importance_that_does_not_broadcast_to_the_weight_is_refused(shape):
    with pytest.raises(ValueError, match="does not broadcast"):
        compress(ARTICLE, 2, importance=np.ones(shape))


def test_a_weight_of_another_shape_than_the_indices_has_no_inertia():
    with pytest.raises(ValueError, match=r"\(16,\).*\(4, 4\)"):
        inertia(ARTICLE.reshape(16), compress(ARTICLE, 2))


@pytest.mark.parametrize(
    ("indices", "codebook", "message"),
    [
        (np.zeros(4, np.int8), np.zeros((1, 4), np.float32), "uint8 indices"),
        (np.zeros(4, np.uint8), np.zeros((1, 4)), "float32 codebook"),
        (np.zeros(4, np.uint8), np.zeros(4, np.float32), "2 axes"),
        (np.zeros(4, np.uint8), np.zeros((3, 4), np.float32), "3 groups do not divide"),
        (np.zeros(4, np.uint8), np.zeros((0, 4), np.float32), "0 groups do not divide"),
        (np.zeros(4, np.uint8), np.zeros((1, 3), np.float32), "not 3"),
        (np.zeros(4, np.uint8), np.zeros((1, 1), np.float32), "not 1"),
        (np.full(4, 4, np.uint8), np.zeros((1, 4), np.float32), "index 4 is beyond"),
    ],
)
def test_indices_and_a_codebook_that_do_not_fit_are_refused(indices, codebook, message):
    with pytest.raises(ValueError, match=message):
        SharedWeights(indices, codebook)


# Against brute force and scikit-learn


@given(
    st.lists(st.tuples(st.integers(-40, 40), st.integers(0, 5)), min_size=1, max_size=9),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_partition_of_a_few_values_is_the_best_of_all(pairs, bits, keep_zero):
    weight = array(*(value / 8 for value, _ in pairs))
    importance = np.array([share for _, share in pairs])
    shared = compress(weight, bits, importance=importance, keep_zero=keep_zero)
    if not importance.any():
        importance = np.ones(len(pairs))
    least = least_inertia(weight, importance, 2**bits, keep_zero)
    assert inertia(weight, shared, importance) == pytest.approx(least, rel=1e-6, abs=1e-9)  # entries are float32
    assert not keep_zero or 0 in shared.codebook


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "bimodal"])
@pytest.mark.parametrize(
    ("count", "weighted"), [(500, False), (1500, False), (3000, True)], ids=["all cuts", "some", "some, weighted"]
)
def test_the_inertia_is_no_higher_than_that_of_scikit_learn(kind, bits, count, weighted):
    cluster = pytest.importorskip("sklearn.cluster")
    weight = samples(kind, count)
    importance = np.random.default_rng(1).gamma(1, size=count) if weighted else np.ones(count)
    theirs = cluster.KMeans(2**bits, n_init=10, random_state=0)
    theirs.fit(weight.astype(np.float64)[:, None], sample_weight=importance)
    assert inertia(weight, compress(weight, bits, importance=importance), importance) <= theirs.inertia_ * (1 + 1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("outlier", [None, 1e6])
def test_a_choice_of_cuts_costs_next_to_nothing_against_all(bits, outlier, monkeypatch):
    weight = halves("heavy tails", 20_000)
    if outlier:
        weight[7] = outlier
    some = inertia(weight, compress(weight, bits))
    assert np.unique(weight).size > 2 * kmeans._MOST_CUTS
    for name in ("_LEAST_CUTS", "_MOST_CUTS"):
        monkeypatch.setattr(kmeans, name, 1 << 16)
    best = inertia(weight, compress(weight, bits))
    assert best <= some <= best * (1.003 if bits == 8 else 1.0001)


# Large weights go through a histogram of float16 patterns


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_histogram_of_a_large_weight_of_float16_values_loses_nothing(bits):
    weight = halves("laplace", 1 << 16)
    small, large = compress(weight, bits), compress(np.stack([weight, weight]), bits)
    assert np.array_equal(large.codebook, small.codebook)
    assert np.array_equal(large.indices, [small.indices] * 2)


@pytest.mark.parametrize("power", [-100, 100])
def test_the_scale_of_a_large_weight_does_not_matter(power):
    weight = halves("gaussian", LARGE)
    shared, scaled = compress(weight, 4), compress(weight * np.float32(2.0**power), 4)
    assert np.array_equal(scaled.indices, shared.indices)
    assert np.array_equal(scaled.codebook, shared.codebook * np.float32(2.0**power))


def test_entries_are_means_of_the_true_values_where_float16_would_round_them():
    step = np.ldexp(1.0, np.arange(-10, -7))[:, None]  # of float16 in [1, 2), [2, 4) and [4, 8)
    octaves = step * np.arange(1024, 2048)
    values = np.concatenate([octaves - 0.4 * step, -octaves]).ravel()  # the positive ones round up by 0.4 steps
    weight = np.random.default_rng(4).choice(values, LARGE).astype(np.float32)
    shared = compress(weight, 4)
    means = [weight[shared.indices == entry].mean(dtype=np.float64) for entry in range(16)]
    assert np.allclose(shared.codebook[0], means, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "heavy tails"])
def test_bins_cost_a_large_float32_weight_next_to_nothing(kind, monkeypatch):
    weight = samples(kind, LARGE)
    binned = inertia(weight, compress(weight, 4))
    monkeypatch.setattr(kmeans, "_PATTERNS", 1 << 17)
    assert binned <= inertia(weight, compress(weight, 4)) * 1.0001


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_few_distinct_values_of_a_large_float32_weight_are_kept(weighted):
    values = np.float32(1) + np.arange(16, dtype=np.float32) * np.float32(2**-22)  # all of them 1.0 in float16
    weight = np.resize(values, (16, LARGE // 16))
    shared = compress(weight, 4, importance=np.arange(LARGE // 16) if weighted else None)
    assert np.array_equal(decompress(shared), weight)


def test_a_large_weight_that_lies_in_few_float16_values_is_shared_all_the_same():
    spread = samples("gaussian", LARGE) * 1e-3
    weight = np.float32(1) + spread
    share = inertia(weight, compress(weight, 4)) / inertia(
        weight,
        SharedWeights(np.zeros(weight.shape, np.uint8), np.array([[weight.mean(dtype=np.float64)] * 2], np.float32)),
    )
    assert share < 0.0098  # a Gaussian's best 16 levels leave 0.0095 of its variance (Max 1960)


@pytest.mark.parametrize("weight", [halves("laplace", LARGE), samples("laplace", LARGE)], ids=["float16", "float32"])
def test_the_importance_of_a_large_weight_counts(weight):
    importance = np.random.default_rng(2).gamma(0.3, size=LARGE)
    blind, seeing = compress(weight, 3), compress(weight, 3, importance=importance)
    for entry, value in enumerate(seeing.codebook[0]):
        members = seeing.indices == entry
        assert value == pytest.approx(np.average(weight[members], weights=importance[members]), rel=1e-3)
    assert inertia(weight, seeing, importance) < inertia(weight, blind, importance)
    assert inertia(weight, blind) < inertia(weight, seeing)


@pytest.mark.parametrize(
    "weight",
    [samples("bimodal", 3000), halves("heavy tails", LARGE), samples("heavy tails", LARGE)],
    ids=["small", "float16", "float32"],
)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_every_weight_gets_its_nearest_entry_of_an_ascending_codebook(weight, bits):
    shared = compress(weight, bits)
    wide = shared.codebook[0].astype(np.float64)
    assert np.all(np.diff(wide) > 0)
    error = np.abs(weight - wide[shared.indices])
    for neighbour in (-1, 1):
        other = wide[np.clip(shared.indices.astype(int) + neighbour, 0, wide.size - 1)]
        assert np.all(error <= np.abs(weight - other))


def test_neighbours_far_from_zero_are_told_apart():
    apart = 4 * np.arange(256)
    close = apart[100:144] + 1  # 44 values more than there are entries, each one step from another
    steps = np.concatenate([apart, close, np.zeros(20_000)])
    weight = (1 + 2.0**-23 * steps).astype(np.float32)
    shared = compress(weight, 8)
    # Each of the 44 pairs shares an entry, rounded to one of the two; any others would be 3 steps or 4 from each other.
    assert inertia(weight, shared) == 44 * (2.0**-23) ** 2


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.integers(1, 4),
    st.booleans(),
)
@example([0, 0, 0, 1, 0.5, -1, -1136517065998336, -2.586549564735488e16, 3, 2, -6.790075307747482e27], 3, False)
def test_any_finite_weight_gets_an_ascending_codebook_and_nearest_entries(values, bits, keep_zero):
    weight = array(*values)
    shared = compress(weight, bits, keep_zero=keep_zero)
    wide = shared.codebook[0].astype(np.float64)
    assert np.all(np.diff(wide) >= 0)
    error = np.abs(decompress(shared) - weight.astype(np.float64))
    nearest = np.abs(weight.astype(np.float64)[:, None] - wide).min(1)
    assert np.all(error <= nearest * (1 + 1e-6))
    assert not keep_zero or not np.any(decompress(shared)[weight == 0])
    assert np.unique(np.append(weight, 0) if keep_zero else weight).size > 2**bits or np.all(error == 0)


def test_sharing_leaves_at_most_2_to_the_bits_values():
    for bits in (1, 3):
        assert np.unique(decompress(compress(samples("gaussian", 500), bits))).size == 2**bits


@pytest.mark.parametrize("count", [300, 300_000])
def test_the_layout_in_memory_does_not_matter(count):
    weight = halves("gaussian", count).reshape(-1, 50)
    importance = np.arange(1.0, 51)
    shared = compress(weight, 3, groups=2, importance=importance)
    other = compress(np.asfortranarray(weight), 3, groups=2, importance=importance)
    assert np.array_equal(other.codebook, shared.codebook)
    assert np.array_equal(other.indices, shared.indices)
    assert inertia(np.asfortranarray(weight), shared, importance) == inertia(weight, shared, importance)


@pytest.mark.parametrize("make", [halves, samples], ids=["float16", "float32"])
def test_memory_stays_below_four_times_the_weight(make):
    weight = make("gaussian", 1 << 22).reshape(1 << 11, -1)
    importance = np.ones(weight.shape[1])
    tracemalloc.start()
    try:
        shared = compress(weight, 4, importance=importance)
        inertia(weight, shared, importance)
        decompress(shared)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * weight.nbytes
