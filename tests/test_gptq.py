"""GPTQ: a row worked out by hand, the algorithm in its slow form, and the output error on correlated inputs."""

import numpy as np
import pytest

from outzoom.compress.gptq import gptq
from outzoom.compress.int4 import compress, decompress


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def covariance_of(columns, samples=2000, seed=1):
    """Inputs that follow a few common causes, some strongly, as activations do: mean of x x^T."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((samples, columns // 4)) @ rng.standard_normal((columns // 4, columns))
    x = (causes / (columns // 4) ** 0.5 + 0.3 * rng.standard_normal((samples, columns))) * rng.lognormal(size=columns)
    return x.T @ x / samples


def output_error(weight, packed, covariance):
    """The trace of (W - Q) C (W - Q)^T."""
    error = weight - decompress(packed)
    return float(np.sum(error @ covariance * error))


def assert_same(packed, expected):
    assert packed.block == expected.block
    for field in ("codes", "scales", "zero_points"):
        assert np.array_equal(getattr(packed, field), getattr(expected, field)), field


def textbook(weight, covariance, block, symmetric, damping_fraction=0.01):
    """The update of optimal brain quantization, a column at a time, with the whole inverse: in float64."""
    weight = weight.astype(np.float64)
    columns = len(covariance)
    inverse = np.linalg.inv(covariance + damping_fraction * covariance.diagonal().mean() * np.eye(columns))
    codes = np.empty(weight.shape, np.uint8)
    for j in range(columns):
        if j % block == 0:
            run = compress(weight[:, j : j + block], block, symmetric)
            scale, zero_point = run.scales[:, 0].astype(np.float64), run.zero_points[:, 0].astype(np.float64)
        codes[:, j] = np.clip(np.rint(weight[:, j] / scale) + zero_point, 0, 15)
        error = (weight[:, j] - (codes[:, j] - zero_point) * scale) / inverse[j, j]
        weight -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


# By hand


def test_a_correlated_input_takes_over_the_rounding_error():
    weight = np.array([[1.4, 0.4, -8.0]])  # a step of 1
    covariance = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert compress(weight).codes.tolist() == [[9, 8, 0]]
    # 1.4 becomes 1. The best answer of the second input to 0.4 of the first is 0.4 * 0.5 / 1 = 0.2: 0.6 becomes 1.
    packed = gptq(weight, covariance, damping_fraction=0)
    assert packed.codes.tolist() == [[9, 9, 0]]
    # Errors (0.4, 0.4): 0.16 + 0.16 + 2 * 0.5 * 0.16. Errors (0.4, -0.6): 0.16 + 0.36 - 2 * 0.5 * 0.24.
    assert output_error(weight, compress(weight), covariance) == pytest.approx(0.48)
    assert output_error(weight, packed, covariance) == pytest.approx(0.28)


def test_damping_makes_the_answer_smaller():
    weight = np.array([[1.4, 0.4, -8.0]])
    covariance = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    # 0.4 * 0.5 / (1 + 0.9) = 0.105 rounds up with 0.4, 0.4 * 0.5 / (1 + 1.1) = 0.095 does not.
    assert gptq(weight, covariance, damping_fraction=0.9).codes.tolist() == [[9, 9, 0]]
    assert gptq(weight, covariance, damping_fraction=1.1).codes.tolist() == [[9, 8, 0]]


def test_a_block_gets_its_scale_when_it_is_reached():
    weight = np.zeros((1, 17))
    weight[0, :2], weight[0, 16] = [-8.0, 1.4], -4.0
    covariance = np.eye(17)
    covariance[1, 16] = covariance[16, 1] = 0.5
    # The error of 0.4 moves -4 to -3.8: that, not -4, is 8 steps of the second block.
    packed = gptq(weight, covariance, block=16, damping_fraction=0)
    assert packed.scales.tolist() == [[1.0, np.float16(3.8 / 8)]]
    assert packed.codes[0, [1, 16]].tolist() == [9, 0]


# Parity


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "block"), [(64, 16), (96, 64), (80, 32), (40, 128)])
def test_codes_are_those_of_the_slow_form_of_the_algorithm(columns, block, symmetric):
    weight, covariance = normal(24, columns).astype(np.float32), covariance_of(columns)
    # Float32 against float64: equal unless a number is within some 1e-6 steps of half-way, and none is.
    assert np.array_equal(
        gptq(weight, covariance, block, symmetric).codes, textbook(weight, covariance, block, symmetric)
    )


# Properties


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["none", "mse"])
@pytest.mark.parametrize("columns", [128, 200])
def test_a_multiple_of_the_identity_gives_the_codes_of_plain_rounding(columns, clip, symmetric):
    weight = normal(20, columns).astype(np.float32)
    packed = gptq(weight, 3 * np.eye(columns), 64, symmetric, clip)
    assert_same(packed, compress(weight, 64, symmetric, clip))


def test_a_diagonal_covariance_is_the_importance_of_clipping():
    weight, moments = normal(20, 128).astype(np.float32), np.exp(normal(128, seed=1))
    weighted = compress(weight, clip="mse", importance=moments)
    assert not np.array_equal(weighted.scales, compress(weight, clip="mse").scales)
    assert_same(gptq(weight, np.diag(moments), clip="mse"), weighted)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["none", "mse"])
@pytest.mark.parametrize("block", [32, 128])
def test_the_output_error_is_clearly_below_that_of_plain_rounding(block, clip, symmetric):
    weight, covariance = normal(64, 320), covariance_of(320)
    plain = compress(weight, block, symmetric, clip, covariance.diagonal())
    error = output_error(weight, gptq(weight, covariance, block, symmetric, clip), covariance)
    assert 1.5 * error < output_error(weight, plain, covariance)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("columns", "block"), [(30, 16), (70, 32), (150, 64)])
def test_the_output_error_is_not_above_that_of_plain_rounding(columns, block, seed):
    # Not a theorem: of 3000 small covariances drawn at random, two came out above.
    weight, covariance = normal(32, columns, seed=seed), covariance_of(columns, 300, seed + 100)
    error = output_error(weight, gptq(weight, covariance, block), covariance)
    assert error <= output_error(weight, compress(weight, block), covariance)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_unit_of_the_inputs_does_not_matter(factor):
    weight, covariance = normal(8, 80), covariance_of(80)
    assert_same(gptq(weight, factor * covariance, clip="mse"), gptq(weight, covariance, clip="mse"))


def test_fewer_samples_than_inputs_will_do():
    weight, covariance = normal(16, 128), covariance_of(128, samples=20)
    assert np.linalg.matrix_rank(covariance) == 20
    error = output_error(weight, gptq(weight, covariance), covariance)
    assert 1.5 * error < output_error(weight, compress(weight), covariance)


@pytest.mark.parametrize("damping_fraction", [0, 0.1])
def test_an_input_that_never_fired_is_rounded_to_nearest_and_changes_nothing_else(damping_fraction):
    weight, covariance = normal(8, 64), covariance_of(64)
    dead, live = np.arange(3, 64, 2), np.delete(np.arange(64), np.arange(3, 64, 2))
    weight[:, 0], weight[:, dead] = 8, np.clip(weight[:, dead], -1, 1)  # the first column sets the scales
    covariance[dead], covariance[:, dead] = 0, 0
    packed = gptq(weight, covariance, damping_fraction=damping_fraction)
    assert np.array_equal(packed.codes[:, dead], compress(weight).codes[:, dead])
    alone = gptq(weight[:, live], covariance[np.ix_(live, live)], damping_fraction=damping_fraction)
    assert np.array_equal(packed.codes[:, live], alone.codes)
    assert not np.array_equal(alone.codes, compress(weight[:, live]).codes)


@pytest.mark.parametrize("damping_fraction", [0, 0.01])
def test_inputs_that_never_fired_at_all_are_rounded_to_nearest(damping_fraction):
    weight = normal(8, 70)
    assert_same(gptq(weight, np.zeros((70, 70)), 64, True, "mse", damping_fraction), compress(weight))


@pytest.mark.parametrize("clip", ["none", "mse"])
def test_zeros_stay_zeros(clip):
    assert not decompress(gptq(np.zeros((3, 40)), covariance_of(40), 16, clip=clip)).any()


def test_an_error_too_large_for_float16_to_make_up_for_stays_finite():
    weight = np.zeros((1, 17))
    weight[0, :2] = -65504.0, 4000.0  # less than half a step of 8188
    covariance = np.eye(17)
    covariance[1, 1], covariance[1, 16], covariance[16, 1], covariance[16, 16] = 1, 1e-4, 1e-4, 1e-8
    packed = gptq(weight, covariance, block=16, damping_fraction=1e-10)
    assert np.isfinite(decompress(packed)).all()
    assert decompress(packed)[0, 16] > 65504  # as near to 4000 / 1e-4 as a float16 scale reaches


def test_neither_the_weight_nor_the_covariance_is_touched():
    weight, covariance = normal(4, 40).astype(np.float32), covariance_of(40)
    covariance[3], covariance[:, 3] = 0, 0
    before = weight.copy(), covariance.copy()
    gptq(weight, covariance, clip="mse")
    assert np.array_equal(weight, before[0])
    assert np.array_equal(covariance, before[1])


def test_a_float32_covariance_gives_nearly_the_same_error():
    weight, covariance = normal(32, 128), covariance_of(128)
    error = output_error(weight, gptq(weight, covariance.astype(np.float32)), covariance)
    # Codes may turn where float32's rounding of the covariance tips a half.
    assert error == pytest.approx(output_error(weight, gptq(weight, covariance), covariance), rel=0.02)


# Refusals


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (4,), (1, 4, 4)])
def test_a_covariance_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"covariance must be \(4, 4\)"):
        gptq(normal(2, 4), np.ones(shape))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 1), (2, 2)])
def test_a_covariance_that_is_not_finite_is_refused(place, number):
    covariance = np.eye(4)
    covariance[place] = number
    with pytest.raises(ValueError, match=r"covariance .*finite|covariance has NaN or infinity"):
        gptq(normal(2, 4), covariance)


def test_a_negative_second_moment_is_refused():
    with pytest.raises(ValueError, match="diagonal of the covariance must be finite and not negative, got -1"):
        gptq(normal(2, 2), np.diag([1.0, -1.0]))


@pytest.mark.parametrize(("covariance", "damping_fraction"), [([[1, 1], [1, 1]], 0), ([[1, 2], [2, 1]], 0.01)])
def test_a_covariance_that_damping_does_not_make_definite_is_refused(covariance, damping_fraction):
    with pytest.raises(ValueError, match=f"not positive definite with damping_fraction {damping_fraction}: raise it"):
        gptq(normal(2, 2), np.array(covariance, np.float64), damping_fraction=damping_fraction)


@pytest.mark.parametrize("damping_fraction", [-0.01, np.nan, np.inf])
def test_an_impossible_damping_is_refused(damping_fraction):
    with pytest.raises(ValueError, match="damping_fraction must be finite and not negative"):
        gptq(normal(2, 2), np.eye(2), damping_fraction=damping_fraction)


def test_what_compress_refuses_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        gptq(np.full((2, 2), np.nan), np.eye(2))
    with pytest.raises(ValueError, match="block must be one of"):
        gptq(normal(2, 2), np.eye(2), block=8)
    with pytest.raises(ValueError, match="clip must be"):
        gptq(normal(2, 2), np.eye(2), clip="max")
