"""Block-wise 4-bit weights: by hand, against ONNX Runtime's and ONNX's own decoders, and for weights at random."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from outzoom.compress.int4 import BLOCKS, ELEMENTS_AT_ONCE, BlockWeights, compress, decompress


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def weighted_error(weight, packed, importance=1.0):
    """The squared error of each block, (rows, blocks), in float64."""
    error = importance * (decompress(packed).astype(np.float64) - weight) ** 2
    return np.add.reduceat(error, np.arange(0, weight.shape[1], packed.block), axis=1)


def assert_same(packed, expected):
    assert packed.block == expected.block
    for field in ("codes", "scales", "zero_points"):
        assert np.array_equal(getattr(packed, field), getattr(expected, field)), field


# By hand


def test_symmetric_codes_give_the_longest_end_minus_8():
    packed = compress(np.array([[-4.0, 3.5, 0.3, -0.2, 1.0]]))  # -4 / -8 = 0.5 a step: -8, 7, 0.6, -0.4, 2
    assert packed.scales.tolist() == [[0.5]]
    assert packed.zero_points.tolist() == [[8]]
    assert packed.codes.tolist() == [[0, 15, 9, 8, 10]]
    assert decompress(packed).tolist() == [[-4.0, 3.5, 0.5, 0.0, 1.0]]


def test_a_longest_end_above_zero_makes_the_scale_negative():
    packed = compress(np.array([[4.0, -3.5, 0.3, 1.0]]))
    assert packed.scales.tolist() == [[-0.5]]
    assert packed.codes.tolist() == [[0, 15, 7, 6]]
    assert decompress(packed).tolist() == [[4.0, -3.5, 0.5, 1.0]]


def test_a_positive_scale_covers_the_longest_end_by_7_or_by_minus_8():
    packed = compress(np.array([[3.5, -0.5, 1.0], [-4.0, 3.0, 1.0]]), positive=True)
    assert packed.scales.tolist() == [[0.5], [0.5]]
    assert decompress(packed).tolist() == [[3.5, -0.5, 1.0], [-4.0, 3.0, 1.0]]


@pytest.mark.parametrize("clip", ["none", "mse"])
def test_positive_scales_are_positive_and_cost_little(clip):
    weight = normal(64, 256)
    positive, either = compress(weight, clip=clip, positive=True), compress(weight, clip=clip)
    assert (positive.scales > 0).all()
    assert (either.scales < 0).any()
    ratio = weighted_error(weight, positive).sum() / weighted_error(weight, either).sum()
    assert 1 < ratio < 1.35  # 1.28 is what levels of one fewer step cost on both ends


def test_the_shorter_end_is_cut_off_at_7_steps():
    assert decompress(compress(np.array([[-4.0, 3.9]]))).tolist() == [[-4.0, 3.5]]


def test_asymmetric_codes_cover_the_range_with_all_16_levels():
    packed = compress(np.array([[-1.0, 0.0, 6.5, 3.2]]), symmetric=False)  # 7.5 / 15 = 0.5 a step: -2, 0, 13, 6.4
    assert packed.scales.tolist() == [[0.5]]
    assert packed.zero_points.tolist() == [[2]]
    assert packed.codes.tolist() == [[0, 2, 15, 8]]
    assert decompress(packed).tolist() == [[-1.0, 0.0, 6.5, 3.0]]


@pytest.mark.parametrize(("sign", "zero_point", "codes"), [(1, 0, [3, 15, 7]), (-1, 15, [12, 0, 8])])
def test_the_asymmetric_range_of_a_one_sided_block_begins_at_zero(sign, zero_point, codes):
    packed = compress(sign * np.array([[3.0, 15.0, 7.3] + [5.0] * 13]), 16, symmetric=False)  # a whole block
    assert packed.scales.tolist() == [[1.0]]
    assert packed.zero_points.tolist() == [[zero_point]]
    assert packed.codes[0, :3].tolist() == codes


def test_every_block_has_its_own_scale():
    weight = np.zeros((2, 20))
    weight[0, 0], weight[0, 16], weight[1, 15], weight[1, 19] = -8, -16, 24, -32
    packed = compress(weight, block=16)
    assert packed.scales.tolist() == [[1.0, 2.0], [-3.0, 4.0]]
    assert np.array_equal(decompress(packed), weight)


def test_codes_are_the_nearest_for_the_scale_as_float16_has_it():
    # -8.004 / -8 = 1.0005, in float16 1 + 2^-10 = 1.00098. 6.506 is 6.503 of the first, 6.4997 of the second.
    packed = compress(np.array([[-8.004, 6.506]]))
    assert packed.scales.tolist() == [[1 + 2**-10]]
    assert packed.codes.tolist() == [[0, 14]]


def test_clipping_widens_a_scale_whose_shorter_end_would_be_cut_off():
    weight = np.array([[-8.0, 7.9]])
    assert weighted_error(weight, compress(weight)) == pytest.approx(0.81)  # 7.9 becomes 7
    # At a step of 1.15 they become -7 and 7 steps, -8.05 and 8.05: 0.05^2 + 0.15^2.
    assert weighted_error(weight, compress(weight, clip="mse")) == pytest.approx(0.025, rel=0.05)  # float16's 1.15


def test_clipping_cuts_off_an_outlier_for_the_sake_of_the_rest():
    weight = np.array([[-8.0] + [0.5] * 60])
    assert weighted_error(weight, compress(weight)) == 15  # 0.5 steps become 0 (to even): 60 * 0.5^2
    # At a step of 0.75 they become -6 and 0.75: 2^2 + 60 * 0.25^2 = 7.75, the least of all steps.
    assert 7.7 < weighted_error(weight, compress(weight, clip="mse")) < 7.8


def test_importance_decides_what_clipping_protects():
    weight = np.array([[-8.0] + [0.5] * 60])
    importance = np.ones(61)
    importance[0] = 1000.0
    assert decompress(compress(weight, clip="mse", importance=importance))[0, 0] == -8.0
    importance[0] = 0.0
    finest = decompress(compress(weight, clip="mse", importance=importance))
    assert finest[0, :2] == pytest.approx([-8 * 0.6, 0.6], rel=2**-11)  # float16's 0.6


@pytest.mark.parametrize("factor", [1e-60, 1e60])
def test_the_unit_of_importance_does_not_matter(factor):
    weight, importance = normal(8, 70), np.exp(normal(1, 70, 1)[0]).astype(np.float64)
    weighted = compress(weight, clip="mse", importance=importance)
    assert_same(compress(weight, clip="mse", importance=factor * importance), weighted)


def test_without_any_importance_nothing_is_clipped():
    weight = normal(8, 70)
    assert_same(compress(weight, clip="mse", importance=np.zeros(70)), compress(weight))


def test_types_and_shapes_are_those_of_the_class():
    packed = compress(normal(3, 70), block=32)
    assert (packed.codes.dtype, packed.codes.shape) == (np.uint8, (3, 70))
    assert (packed.scales.dtype, packed.scales.shape) == (np.float16, (3, 3))
    assert (packed.zero_points.dtype, packed.zero_points.shape) == (np.uint8, (3, 3))
    assert decompress(packed).dtype == np.float32


# Ends of the range


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["none", "mse"])
def test_zeros_stay_zeros(symmetric, clip):
    assert not decompress(compress(np.zeros((2, 40)), 16, symmetric, clip)).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("peak", [2.0**-22, 2.0**-24, 1e-10, 1e-40])
def test_a_block_too_small_for_a_float16_scale_is_rounded_to_float16s_smallest_steps(symmetric, peak):
    weight = np.array([[peak, -peak / 3, peak / 2, 0.0]], np.float32)
    packed = compress(weight, symmetric=symmetric)
    assert np.abs(packed.scales) == 2.0**-24
    assert np.abs(decompress(packed) - weight).max() <= 2.0**-25


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["none", "mse"])
@pytest.mark.parametrize("row", [[65504.0, 0.0], [-65504.0, 65504.0]])
def test_float16s_whole_range_is_accepted(symmetric, clip, row):
    packed = compress(np.array([row]), 64, symmetric, clip)
    assert np.isfinite(packed.scales).all()
    step = 65504 / 8 if symmetric else (max(row) - min(row)) / 15
    assert np.abs(decompress(packed) - row).max() <= step * 1.01  # 15 steps, each with float16's rounding of the scale


@pytest.mark.parametrize("peak", [65505.0, -65505.0, 1e300])
def test_a_weight_beyond_float16_is_refused(peak):
    weight = np.zeros((2, 3))
    weight[1, 2] = peak
    with pytest.raises(ValueError, match="beyond the range of float16"):
        compress(weight)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(number):
    weight = np.zeros((2, 3))
    weight[1, 2] = number
    with pytest.raises(ValueError, match="NaN or infinity"):
        compress(weight)


@pytest.mark.parametrize("shape", [(8,), (2, 2, 2), (0, 4), (4, 0)])
def test_a_weight_that_is_not_a_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="must be a matrix"):
        compress(np.zeros(shape))


@pytest.mark.parametrize("block", [0, 8, 48, 256])
def test_another_block_is_refused(block):
    with pytest.raises(ValueError, match=f"block must be one of .* got {block}"):
        compress(normal(2, 3), block)


def test_another_clip_is_refused():
    with pytest.raises(ValueError, match="clip must be 'none' or 'mse', got 'max'"):
        compress(normal(2, 3), clip="max")


@pytest.mark.parametrize(
    ("importance", "message"),
    [(np.ones(4), r"got shape \(4,\)"), (np.ones((1, 3)), "got shape"), ([1, -1, 1], "not negative"),
     ([1, np.nan, 1], "must be finite"), ([1, np.inf, 1], "must be finite")],
)  # fmt: skip
def test_an_importance_that_is_not_a_second_moment_a_column_is_refused(importance, message):
    with pytest.raises(ValueError, match=message):
        compress(normal(2, 3), clip="mse", importance=np.array(importance))


# Properties


@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from(BLOCKS),
    columns=st.integers(1, 300),
    symmetric=st.booleans(),
    clip=st.sampled_from(["none", "mse"]),
    exponent=st.floats(-8, 4),
)
def test_no_other_code_is_nearer(seed, block, columns, symmetric, clip, exponent):
    weight = normal(2, columns, seed) * np.float32(10**exponent)
    packed = compress(weight, block, symmetric, clip)
    distances = []
    for code in range(16):
        codes = np.full_like(packed.codes, code)
        level = decompress(BlockWeights(codes, packed.scales, packed.zero_points, block))
        distances.append(np.abs(level.astype(np.float64) - weight))
    # Half-way between two levels the division's float32 rounding may choose either.
    assert np.all(np.abs(decompress(packed).astype(np.float64) - weight) <= np.min(distances, axis=0) * (1 + 1e-5))


@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from(BLOCKS),
    columns=st.integers(1, 300),
    symmetric=st.booleans(),
    spread=st.sampled_from([None, 0.0, 1.0, 5.0]),
)
def test_clipping_is_never_worse_in_any_block(seed, block, columns, symmetric, spread):
    weight = normal(2, columns, seed)
    importance = None if spread is None else np.exp(spread * normal(1, columns, seed + 1)[0])
    clipped = compress(weight, block, symmetric, "mse", importance)
    plain = compress(weight, block, symmetric)
    clipped, plain = (
        weighted_error(weight, packed, 1 if spread is None else importance) for packed in (clipped, plain)
    )
    assert np.all(clipped <= plain * (1 + 1e-5))  # float32's rounding of sums of up to 128 squares


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["none", "mse"])
def test_a_short_last_block_is_compressed_as_if_it_stood_alone(symmetric, clip):
    weight, importance = normal(5, 320) + 1, np.exp(normal(1, 320, 1)[0])
    whole = compress(weight, 128, symmetric, clip, importance)
    assert whole.scales.shape == (5, 3)
    full = compress(weight[:, :256], 128, symmetric, clip, importance[:256])
    rest = compress(weight[:, 256:], 64, symmetric, clip, importance[256:])
    assert np.array_equal(whole.codes, np.hstack([full.codes, rest.codes]))
    assert np.array_equal(whole.scales, np.hstack([full.scales, rest.scales]))
    assert np.array_equal(whole.zero_points, np.hstack([full.zero_points, rest.zero_points]))


def test_rows_do_not_depend_on_each_other():
    weight = normal(70, 4000)
    assert weight.size > 2 * ELEMENTS_AT_ONCE  # more than can be worked on at once
    packed = compress(weight, symmetric=False)
    weights = decompress(packed)
    for row in (0, 31, 32, 33, 69):
        alone = compress(weight[row : row + 1], symmetric=False)
        assert_same(
            alone, BlockWeights(*(a[row : row + 1] for a in (packed.codes, packed.scales, packed.zero_points)), 64)
        )
        assert np.array_equal(weights[row : row + 1], decompress(alone))


def test_a_row_longer_than_what_is_worked_on_at_once_is_compressed():
    weight = np.full((2, ELEMENTS_AT_ONCE + 16), -8.0, np.float32)
    assert np.array_equal(decompress(compress(weight, 16)), weight)


def test_the_weight_is_not_touched():
    weight = normal(4, 70)
    before = weight.copy()
    compress(weight, 32, False, "mse")
    assert np.array_equal(weight, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_the_type_and_layout_of_the_weight_do_not_matter(dtype):
    weight = normal(4, 70).astype(np.float16)  # numbers that every type has
    assert_same(compress(np.asfortranarray(weight.astype(dtype))), compress(weight.astype(np.float32)))


def test_levels_from_minus_8_err_less_than_levels_from_minus_7():
    weight = normal(200, 64)
    step = np.abs(weight).max(axis=1, keepdims=True) / 7
    seven = (np.rint(weight / step) * step - weight) ** 2
    assert seven.sum() > 1.2 * weighted_error(weight, compress(weight)).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_pays_on_normal_weights(symmetric):
    weight = normal(200, 128)
    plain = weighted_error(weight, compress(weight, 128, symmetric)).sum()
    assert weighted_error(weight, compress(weight, 128, symmetric, "mse")).sum() < 0.92 * plain


# Parity


def nibbles(codes, width):
    """Rows of codes, filled up with zeros to `width`, two to a byte, the first in the low half."""
    padded = np.zeros((len(codes), width), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded[:, ::2] | padded[:, 1::2] << 4


def model_of(node, initializers, inputs, output):
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs]
    graph = helper.make_graph(
        [node], "g", described, [helper.make_empty_tensor_value_info(output)], initializer=tensors
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("columns", [256, 320])  # 320 is no multiple of 128
def test_onnxruntimes_matmul_computes_with_the_decompressed_weight(columns, block, symmetric):
    weight, x = normal(24, columns), normal(3, columns, 1)
    packed = compress(weight, block, symmetric)
    blocks = packed.scales.shape[1]
    codes = nibbles(packed.codes, blocks * block).reshape(24, blocks, block // 2)
    initializers = {"codes": codes, "scales": packed.scales.astype(np.float32)}  # the type of x
    if not symmetric:  # the operator's zero point is 8 unless told
        initializers["zeros"] = nibbles(packed.zero_points, blocks + blocks % 2)
    node = helper.make_node(
        "MatMulNBits", ["x", *initializers], ["y"], domain="com.microsoft",
        K=columns, N=24, bits=4, block_size=block, accuracy_level=1,  # compute in float32
    )  # fmt: skip
    y = run(model_of(node, initializers, [("x", x.shape)], "y"), {"x": x})
    decoded = decompress(packed).astype(np.float64)
    # Float32 sums in the engine's own order: 16 roundings of the sum of magnitudes (3 were measured).
    bound = 16 * 2**-24 * (np.abs(x) @ np.abs(decoded).T)
    assert np.all(np.abs(y - x @ decoded.T) <= bound)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("columns", [256, 320])
def test_onnxs_dequantize_linear_decodes_the_same_numbers(columns, block, symmetric):
    packed = compress(normal(24, columns), block, symmetric)
    initializers = {
        "codes": packed.codes.astype(ml_dtypes.uint4),
        "scales": packed.scales.astype(np.float32),
        "zeros": packed.zero_points.astype(ml_dtypes.uint4),
    }
    node = helper.make_node("DequantizeLinear", list(initializers), ["y"], axis=1, block_size=block)
    model = model_of(node, initializers, [], "y")
    assert np.array_equal(ReferenceEvaluator(model).run(None, {})[0], decompress(packed))
    assert np.array_equal(run(model, {}), decompress(packed))
