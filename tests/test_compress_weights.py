"""Compressing a graph's weights as a recipe says: on a small graph with a layer of every kind."""

import itertools

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from graphs import CHANNELS, SIDE, initializer, inputs, named, run, session, small_model, snr_db

from outzoom.compress.cast import cast_weights
from outzoom.compress.inputs import ROWS_AT_ONCE, Covariance, Inputs, covariance_file, input_rows
from outzoom.compress.layers import find_layers
from outzoom.compress.packing import PackedWriter
from outzoom.compress.recipe import Int4, KMeans, Prune, Recipe, Rule, Sparsify
from outzoom.compress.statistics import TensorStatistics
from outzoom.compress.weights import compress_weights, in_steps, row_scales
from outzoom.runtime import UserError
from outzoom.runtime.packed import open_packed

LAYERS = ["conv.weight", "linear.weight", "words.weight", "gemm.weight"]


def recipe_of(*rules, entropy_coding=True):
    return Recipe("test", "", "float32", "float32", 0.0, entropy_coding, rules)


@pytest.fixture
def compress(tmp_path):
    """Compress the small model by rules: the new model, the layers left, and the writer."""
    numbers = itertools.count()

    def compressed(*rules, model=None, entropy_coding=True, known=None):
        writer = PackedWriter(tmp_path / f"packed{next(numbers)}.safetensors", entropy_coding)
        made, left = compress_weights(model or small_model(), "unet", recipe_of(*rules), writer, known)
        return made, left, writer

    return compressed


def weights_of(model):
    return {
        name: value.const_value.numpy() for name, value in model.graph.initializers.items()
        if value.const_value.size >= 1024
    }  # fmt: skip


def test_layers_are_found_by_their_checkpoint_names_with_outputs_as_rows():
    model = small_model()
    layers = {layer.name: layer for layer in find_layers(model)}
    assert list(layers) == LAYERS
    weights = weights_of(model)
    conv = layers["conv.weight"].matrix()
    assert conv.shape == (CHANNELS, 9 * CHANNELS)
    assert conv[3, 4 * CHANNELS + 7] == weights["conv.weight"][3, 7, 1, 1]  # the fifth place of the kernel
    assert np.array_equal(layers["linear.weight"].matrix(), weights["linear.weight.transposed10"].T)
    assert np.array_equal(layers["gemm.weight"].matrix(), weights["gemm.weight"])
    assert np.array_equal(layers["words.weight"].matrix(), weights["words.weight"])
    for layer in layers.values():
        assert np.array_equal(layer.tensor(layer.matrix()), weights[layer.value.name])


@pytest.mark.parametrize("engine", ["float32", "float16", "int8"])
@pytest.mark.parametrize("store", [KMeans(5), Int4(32), None], ids=["kmeans", "int4", "plain"])
def test_the_compressed_graph_makes_nearly_the_same(compress, store, engine):
    exact = run(small_model())
    model, left, _ = compress(Rule(store=store, engine=engine))
    assert left == []
    if store is None and engine != "int8":
        assert np.array_equal(run(model), exact)  # these weights are float16's own
        return
    # about 6 dB a bit: five bits shared by k-means, four in blocks, or eight
    least, most = {KMeans: (23, 30), Int4: (19, 26), type(None): (38, 50)}[type(store)]
    assert least < snr_db(exact, run(model)) < most


def test_the_callers_model_is_not_touched(compress):
    model = small_model()
    before = {name: array.copy() for name, array in weights_of(model).items()}
    compress(Rule(store=KMeans(2)), model=model)
    assert weights_of(model).keys() == before.keys()
    assert all(np.array_equal(weights_of(model)[name], before[name]) for name in before)


def test_sharing_leaves_at_most_2_to_the_bits_values_in_each_group(compress):
    _, _, writer = compress(Rule(store=KMeans(3, groups=4)))
    for number, tensor in enumerate(writer.tensors):
        rows = writer.weight(number).transpose(np.argsort(tensor.permutation)).reshape(4, -1)
        assert all(len(np.unique(group)) <= 8 for group in rows)
        assert len(np.unique(rows)) > 8


def test_the_first_rule_that_takes_a_layer_counts(compress):
    _, _, writer = compress(
        Rule(layers=("conv*",), store=KMeans(1)),
        Rule(operators=("Gather",), store=KMeans(2)),
        Rule(components=("vae_decoder",), store=KMeans(3)),
        Rule(layers=("*ar.weight", "conv*"), store=KMeans(4)),
    )
    bits = {tensor.name.partition(".")[0]: tensor.storage.bits for tensor in writer.tensors}
    assert bits == {"conv": 1, "words": 2, "linear": 4}  # no rule is for gemm


@pytest.mark.parametrize("engine", ["float16", "float32", "int8"])
@pytest.mark.parametrize(
    "step", [{"prune": Prune(0.6)}, {"sparsify": Sparsify(1, 4)}, {}], ids=["pruned", "sparse", "plain"]
)
def test_entropy_coding_changes_nothing_but_the_size(compress, step, engine):
    rule = Rule(engine=engine, **step)
    coded, plain = compress(rule)[2], compress(rule, entropy_coding=False)[2]
    for number in range(len(LAYERS)):
        assert np.array_equal(coded.weight(number), plain.weight(number))


def test_pruned_weights_are_stored_without_their_zeros(compress):
    _, _, writer = compress(Rule(prune=Prune(0.75), engine="float16"), entropy_coding=False)
    for number, layer in enumerate(find_layers(small_model())):
        weight = writer.weight(number)
        assert (weight == 0).mean() == pytest.approx(0.75, abs=1 / weight.size)
        kept = weight != 0
        original = layer.value.const_value.numpy()
        assert np.array_equal(weight[kept], original[kept].astype(np.float16))
        assert abs(original[~kept]).max() <= abs(original[kept]).min()
        stored = sum(writer.stored[f"{number}.{name}"].size_bytes for name in writer.tensors[number].arrays)
        assert stored == pytest.approx(weight.size / 8 + weight.size / 4 * 2, rel=0.01)


def test_pruned_and_shared_weights_keep_their_zeros(compress):
    _, _, writer = compress(Rule(prune=Prune(0.5), store=KMeans(2), engine="float32"))
    for number in range(len(LAYERS)):
        assert (writer.weight(number) == 0).mean() >= 0.5


@pytest.mark.parametrize(("engine", "share"), [("float16", 0.5625), ("int8", 0.625)])
def test_two_of_four_are_kept_and_take_the_bytes_that_hardware_gives_them(compress, engine, share):
    _, _, writer = compress(Rule(sparsify=Sparsify(2, 4), engine=engine), entropy_coding=False)
    for number, tensor in enumerate(writer.tensors):
        weight = writer.weight(number)
        rows = weight.transpose(np.argsort(tensor.permutation)).reshape(-1, 4)
        assert (np.count_nonzero(rows, axis=1) <= 2).all()
        stored = sum(writer.stored[f"{number}.{name}"].size_bytes for name in ("values", "indices"))
        assert stored == share * weight.nbytes


def test_linear_layers_compute_from_four_bits_and_others_say_why_not(compress):
    model, left, writer = compress(Rule(store=Int4(32, symmetric=False), engine="int4"))
    assert [node.op_type for node in model.graph if node.domain] == ["MatMulNBits"]
    assert writer.tensors == []
    assert [one.layer for one in left] == ["conv.weight", "words.weight", "gemm.weight"]
    assert all("four bits" in one.reason for one in left)
    assert 19 < snr_db(run(small_model()), run(model)) < 45


def test_four_bits_in_the_engine_are_the_four_bits_that_are_stored(compress):
    """The same codes and scales, once in MatMulNBits and once expanded to float32."""
    store = Int4(64, symmetric=False, clip="none")
    packed, _, _ = compress(Rule(layers=("linear*",), store=store, engine="int4"))  # 32 inputs are half a block
    expanded, _, _ = compress(Rule(layers=("linear*",), store=store, engine="float32"))
    # accuracy level 4 rounds the input to int8, in blocks: 1/255 of the largest of each
    assert snr_db(run(expanded), run(packed)) > 40


def test_channels_that_do_not_divide_into_the_groups_have_fewer(compress):
    _, left, writer = compress(Rule(store=KMeans(2, groups=20)))
    assert left == []
    groups = [writer.stored[f"{number}.codebook"].shape[0] for number in range(len(LAYERS))]
    assert groups == [4, 4, 20, 4]  # of 32 output channels, and of 40 words


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(compress, bad):
    model = small_model()
    value = model.graph.initializers["gemm.weight"]
    array = value.const_value.numpy().copy()
    array[3, 3] = bad
    value.const_value = ir.tensor(array, name="gemm.weight")
    with pytest.raises(UserError, match=r"gemm\.weight.*NaN"):
        compress(Rule(), model=model)


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(store=KMeans(4)), Rule(store=Int4(32), engine="int8"), Rule(prune=Prune(0.1))]
)
def test_weights_beyond_half_precision_are_left_and_named(compress, rule):
    model = small_model()
    value = model.graph.initializers["gemm.weight"]
    array = value.const_value.numpy().copy()
    array[3, 3] = 1e5
    value.const_value = ir.tensor(array, name="gemm.weight")
    _, left, writer = compress(rule, model=model)
    assert [one.layer for one in left] == ["gemm.weight"]
    assert "65504" in left[0].reason
    assert len(writer.tensors) == 3


def test_packed_float32_weights_and_widened_biases_are_not_halved_afterwards(compress):
    model, _, writer = compress(Rule(store=KMeans(4), engine="float32"))
    wide = initializer("wide.bias", np.ones((1, 1, 2048), np.float32))
    model.graph.register_initializer(wide)
    names = set(cast_weights(model).graph.initializers)
    assert {tensor.name for tensor in writer.tensors} <= names
    assert "wide.bias" in names


def test_a_layer_that_a_technique_can_not_take_is_named(compress, known_inputs):
    np.save(covariance_file(known_inputs.covariances, "conv.weight"), np.eye(3, dtype=np.float32))
    with pytest.raises(UserError, match=r"recipe 'test' can't be applied to 'conv\.weight' of unet"):
        compress(Rule(store=Int4(32, rounding="gptq")), known=known_inputs)


@pytest.mark.parametrize("store", [KMeans(4), Int4(16, symmetric=False), Int4(32), None])
@pytest.mark.parametrize("engine", ["float16", "int8"])
@pytest.mark.parametrize("constant", [0.0, 0.25])
def test_constant_weights_stay_what_they_are(compress, store, engine, constant):
    model = small_model()
    for layer in find_layers(model):
        array = np.full(layer.value.const_value.shape.numpy(), constant, np.float32)
        layer.value.const_value = ir.tensor(array, name=layer.value.name)
    exact = run(model)
    made, _, _ = compress(Rule(store=store, engine=engine), model=model)
    # a scale in float16 is exact to 2**-11; ONNX Runtime rounds what meets int8 weights to eight bits, in blocks
    assert np.allclose(run(made), exact, rtol=0, atol=1e-4 + 4e-3 * abs(exact).max())


def test_what_was_written_makes_the_engines_file_again(compress, tmp_path):
    from outzoom.export.reading import WEIGHTS
    from outzoom.export.writing import _offsets

    model, _, writer = compress(Rule(prune=Prune(0.3), store=KMeans(4)))
    ir.save(model, tmp_path / "model.onnx", external_data=WEIGHTS)
    writer.finish(tmp_path / WEIGHTS, _offsets(tmp_path / "model.onnx"))
    packed = open_packed(writer.target)
    assert len(packed.packing.tensors) == 4
    data = (tmp_path / WEIGHTS).read_bytes()
    for index, tensor in enumerate(packed.packing.tensors):
        weight = packed.weight(index)
        assert data[tensor.offset : tensor.offset + tensor.size_bytes] == weight.tobytes()


def test_a_row_has_the_scale_that_its_largest_weight_needs():
    matrix = np.array([[1.27, -0.5], [0, 0], [-2.54, 1.0]], np.float32)
    scales = row_scales(matrix)
    assert scales == pytest.approx([0.01, 1.0, 0.02])
    assert in_steps(matrix, scales).tolist() == [[127, -50], [0, 0], [-127, 50]]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"engine": "int4"}, "int4"),
        ({"store": {"method": "kmeans", "bits": 9}}, "<= 8"),
        ({"store": {"method": "int4", "block": 48}}, "48"),
        ({"store": {"method": "gptq"}}, "gptq"),
        ({"sparsify": {"n": 4, "m": 4}}, "below m"),
        ({"prune": {"fraction": 1.0}}, "< 1"),
        ({"prune": {"fraction": 0.5, "scores": "sparsegpt", "scope": "global"}}, "within a layer"),
        ({"prune": {"fraction": 0.5}, "store": {"method": "int4", "rounding": "gptq"}}, "would fill"),
        ({"prune": {"fraction": 0.5}, "sparsify": {"n": 2, "m": 4, "method": "sparsegpt"}}, "would fill"),
        ({"store": {"method": "int4", "rounding": "awq"}, "engine": "int8"}, "scales"),
        ({"store": {"method": "int4", "rounding": "gptq", "importance": True}}, "importance"),
        ({"operators": ["Convolution"]}, "Convolution"),
        ({"layer": "*"}, "layer"),
    ],
)
def test_rules_out_of_range_are_refused(rule, said):
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(rule, Rule)


def inputs_of(model, folder):
    """Statistics and covariances of the layers' inputs, of correlated pictures."""
    layers = {layer.name: layer for layer in find_layers(model) if layer.op_type != "Gather"}
    made = model.clone()
    wanted = [layer.input_name for layer in layers.values() if layer.input_name != "picture"]
    for node in made.graph:
        made.graph.outputs.extend(value for value in node.outputs if value.name in wanted)
    names = [value.name for value in made.graph.outputs]
    statistics = {}
    covariances = [Covariance(layer) for layer in layers.values()]
    engine = session(made)
    mixing = np.random.default_rng(9).standard_normal((CHANNELS, CHANNELS)) ** 3
    for seed in range(20):
        feeds = inputs(seed)
        feeds["picture"] = np.einsum("ij,bjhw->bihw", mixing, feeds["picture"]).astype(np.float32)
        values = {**feeds, **dict(zip(names, engine.run(None, feeds), strict=True))}
        for layer in layers.values():
            array, axis = values[layer.input_name], 1 if layer.op_type == "Conv" else -1
            statistics.setdefault(layer.input_name, TensorStatistics.empty(array.shape[axis])).add(array, axis)
        for covariance in covariances:
            covariance.add(values[covariance.layer.input_name], 512)
    for covariance in covariances:
        np.save(covariance_file(folder, covariance.layer.name), covariance.mean())
    return Inputs(statistics, folder)


@pytest.fixture
def known_inputs(tmp_path):
    (tmp_path / "covariances").mkdir()
    return inputs_of(small_model(), tmp_path / "covariances")


def output_error(layer, found, covariance):
    """The mean squared error of a layer's outputs on its inputs: tr((W - Q) C (W - Q)^T)."""
    turned = found.transpose(np.argsort(layer.permutation)).reshape(layer.matrix_shape[0], -1)
    difference = (layer.matrix() - turned).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", difference, covariance.astype(np.float64), difference))


@pytest.mark.parametrize(
    ("plain", "calibrated", "least_gain"),
    [
        (Rule(store=Int4(32)), Rule(store=Int4(32, rounding="gptq")), 2.0),
        (Rule(sparsify=Sparsify(2, 4)), Rule(sparsify=Sparsify(2, 4, "sparsegpt")), 2.0),
        (Rule(prune=Prune(0.5)), Rule(prune=Prune(0.5, scores="wanda")), 1.1),
        (Rule(store=KMeans(3)), Rule(store=KMeans(3, importance=True)), 1.0),
        (Rule(store=Int4(32)), Rule(store=Int4(32, importance=True)), 1.02),
    ],
    ids=["gptq", "sparsegpt", "wanda", "weighted k-means", "weighted int4"],
)
def test_knowing_the_inputs_lowers_the_error_of_the_outputs(compress, known_inputs, plain, calibrated, least_gain):
    conv = find_layers(small_model())[0]
    covariance = known_inputs.covariance(conv)
    if not calibrated.needs_covariance:  # then only how large each input is was looked at
        covariance = np.diag(covariance.diagonal())
    errors = [
        output_error(conv, compress(rule, known=known_inputs)[2].weight(0).astype(np.float32), covariance)
        for rule in (plain, calibrated)
    ]
    assert errors[1] * least_gain < errors[0]


def test_pruning_for_the_outputs_beats_the_magnitudes(compress, known_inputs):
    conv = find_layers(small_model())[0]
    covariance = known_inputs.covariance(conv)
    errors = []
    for scores in ("magnitude", "sparsegpt"):
        weight = compress(Rule(prune=Prune(0.5, scores=scores), engine="float32"), known=known_inputs)[2].weight(0)
        assert (weight == 0).mean() == pytest.approx(0.5, abs=0.01)
        errors.append(output_error(conv, weight, covariance))
    assert errors[1] * 2 < errors[0]


def test_a_global_fraction_takes_more_from_layers_of_small_weights(compress):
    model = small_model()
    for layer, factor in zip(find_layers(model), (1.0, 1.0, 0.1, 10.0), strict=True):
        scaled = layer.value.const_value.numpy() * np.float32(factor)
        layer.value.const_value = ir.tensor(scaled, name=layer.value.name)
    _, _, writer = compress(Rule(prune=Prune(0.5, "global"), engine="float32"), model=model)
    weights = [writer.weight(number) for number in range(len(LAYERS))]
    zeros = [(weight == 0).mean() for weight in weights]
    assert sum((weight == 0).sum() for weight in weights) / sum(w.size for w in weights) == pytest.approx(0.5, abs=2e-3)
    assert zeros[3] < zeros[0] < zeros[1] < zeros[2]  # by the size of their weights


@pytest.mark.parametrize("engine", ["int4", "float32"])
def test_inputs_that_matter_get_finer_steps(compress, tmp_path, engine):
    """One input is a hundred times larger than the others: AWQ divides it, and its weights are rounded less."""
    model = small_model()
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    loud = np.ones(CHANNELS, np.float32)
    loud[5] = 100
    model.graph.register_initializer(initializer("loud", loud))
    scaled = ir.node("Mul", [product.inputs[0], model.graph.initializers["loud"]])
    model.graph.insert_before(product, scaled)
    product.replace_input_with(0, named(scaled, "scaled", [1, SIDE * SIDE, CHANNELS]))
    (tmp_path / "known").mkdir()
    known = inputs_of(model, tmp_path / "known")
    exact, errors = run(model), {}
    for rounding in ("nearest", "awq"):
        rule = Rule(layers=("linear*",), store=Int4(32, rounding=rounding), engine=engine)
        made, _, _ = compress(rule, model=model, known=known)
        errors[rounding] = snr_db(exact, run(made))
    assert errors["awq"] > errors["nearest"] + 4


def test_mean_squares_are_the_diagonal_of_the_covariance_at_every_place_of_the_kernel(known_inputs):
    for layer in find_layers(small_model()):
        if layer.op_type != "Gather":
            squares, covariance = known_inputs.mean_squares(layer), known_inputs.covariance(layer)
            assert squares.shape == (layer.columns,)
            # a convolution's border meets padding, which the mean over the picture does not count
            assert np.allclose(covariance.diagonal(), squares, rtol=0.5 if layer.op_type == "Conv" else 1e-3)


def test_input_rows_times_the_matrix_are_what_the_layer_makes():
    model = small_model()
    model.graph.outputs.extend(v for node in model.graph for v in node.outputs if v.name in ("conv.out", "linear.out"))
    model.graph.outputs.extend(v for node in model.graph for v in node.outputs if v.name in ("rows", "embedded"))
    feeds = inputs()
    names = [value.name for value in model.graph.outputs]
    values = {**feeds, **dict(zip(names, session(model).run(None, feeds), strict=True))}
    conv, linear, _, _ = find_layers(model)
    made = input_rows(conv, values["picture"], 10**6) @ conv.matrix().T
    bias = model.graph.initializers["conv.bias"].const_value.numpy()
    assert np.allclose(made + bias, values["conv.out"][0].reshape(CHANNELS, -1).T, atol=1e-4)
    assert np.allclose(
        input_rows(linear, values["rows"], 10**6) @ linear.matrix().T, values["linear.out"][0], atol=1e-4
    )


def test_a_covariance_by_hand_and_of_an_even_choice_of_rows():
    _, linear, _, _ = find_layers(small_model())
    covariance = Covariance(linear)
    values = np.zeros((3, linear.columns), np.float32)
    values[:, :2] = [[1, 2], [50, 50], [3, 0]]  # the row in the middle is not chosen
    covariance.add(values, 2)
    assert covariance.mean()[:2, :2].tolist() == [[5, 1], [1, 2]]
    assert not covariance.mean()[2:].any()


@pytest.mark.parametrize("rows", [1, ROWS_AT_ONCE - 1, ROWS_AT_ONCE])
def test_a_covariance_is_of_all_rows_however_few_come_at_a_time(rows):
    _, linear, _, _ = find_layers(small_model())
    covariance, rng = Covariance(linear), np.random.default_rng(0)
    seen = [rng.standard_normal((rows, linear.columns)).astype(np.float32) for _ in range(3)]
    for values in seen:
        covariance.add(values, rows)
    whole = np.concatenate(seen).astype(np.float64)
    assert np.allclose(covariance.mean(), whole.T @ whole / len(whole), atol=1e-5)  # float32 adds up thousands


def test_a_rule_that_looks_at_inputs_needs_statistics(compress):
    with pytest.raises(UserError, match="statistics"):
        compress(Rule(prune=Prune(0.5, scores="wanda")))
