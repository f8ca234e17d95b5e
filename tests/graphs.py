"""Small graphs made by hand, with a layer of every kind that can be compressed."""

import numpy as np
import onnx_ir as ir
import onnxruntime

from outzoom.compress.layers import find_layers
from outzoom.compress.statistics import TensorStatistics

FLOAT = ir.TensorType(ir.DataType.FLOAT)
CHANNELS, SIDE, WORDS = 32, 6, 40


def initializer(name, array):
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )  # fmt: skip


def named(node, name, shape):
    result = node.outputs[0]
    result.name, result.shape, result.type = name, ir.Shape(shape), FLOAT
    return result


def small_model(seed=0):
    """A convolution of a picture, flattened, times a matrix, plus Gemm of embedded words; weights from `seed`.

    picture (1, 32, 6, 6), words (1, 4) int64 -> out (1, 36, 32)
    """
    rng = np.random.default_rng(seed)

    def weight(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float16).astype(np.float32)

    picture = ir.Value(name="picture", shape=ir.Shape([1, CHANNELS, SIDE, SIDE]), type=FLOAT)
    words = ir.Value(name="words", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.INT64))
    conv_weight = initializer("conv.weight", weight(CHANNELS, CHANNELS, 3, 3))
    conv_bias = initializer("conv.bias", weight(CHANNELS))
    linear = initializer("linear.weight.transposed10", weight(CHANNELS, CHANNELS))
    table = initializer("words.weight", weight(WORDS, CHANNELS))
    gemm_weight = initializer("gemm.weight", weight(CHANNELS, CHANNELS))
    shape = initializer("shape", np.array([1, CHANNELS, SIDE * SIDE], np.int64))
    mean_axes = initializer("axes", np.array([0], np.int64))

    conv = ir.node("Conv", [picture, conv_weight, conv_bias], {"pads": [1, 1, 1, 1]})
    made = named(conv, "conv.out", [1, CHANNELS, SIDE, SIDE])
    flat = ir.node("Reshape", [made, shape])
    rows = ir.node("Transpose", [named(flat, "flat", [1, CHANNELS, SIDE * SIDE])], {"perm": [0, 2, 1]})
    product = ir.node("MatMul", [named(rows, "rows", [1, SIDE * SIDE, CHANNELS]), linear])
    gather = ir.node("Gather", [table, words])
    gemm = ir.node("Gemm", [named(gather, "embedded", [4, CHANNELS]), gemm_weight], {"transB": 1})
    mean = ir.node("ReduceMean", [named(gemm, "gemm.out", [4, CHANNELS]), mean_axes], {"keepdims": 1})
    total = ir.node(
        "Add",
        [named(product, "linear.out", [1, SIDE * SIDE, CHANNELS]), named(mean, "mean", [1, CHANNELS])],
    )
    out = named(total, "out", [1, SIDE * SIDE, CHANNELS])
    nodes = [conv, flat, rows, product, gather, gemm, mean, total]
    weights = [conv_weight, conv_bias, linear, table, gemm_weight, shape, mean_axes]
    graph = ir.Graph([picture, words], [out], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def inputs(seed=1):
    rng = np.random.default_rng(seed)
    picture = rng.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    return {"picture": picture, "words": rng.integers(0, WORDS, 4)}


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, feeds=None):
    return session(model).run(None, feeds or inputs())[0]


def snr_db(reference, found):
    """Signal to noise: 10 more is a tenth of the squared error."""
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum()))


TOKENS, HEADS, WIDTH, LOUD = 6, 4, 64, 7


class Builder:
    """A graph that grows node by node; weights from a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.weights, self.nodes = [], []

    def given(self, name, array):
        self.weights.append(initializer(name, array))
        return self.weights[-1]

    def normal(self, name, *shape, mean=0.0):
        return self.given(name, (mean + self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def made(self, operator, values, name, shape, **attributes):
        self.nodes.append(ir.node(operator, values, attributes))
        return named(self.nodes[-1], name, shape)

    def normalized(self, value, name):
        scale, bias = self.normal(f"{name}.weight", CHANNELS, mean=1.0), self.normal(f"{name}.bias", CHANNELS)
        return self.made("LayerNormalization", [value, scale, bias], name, [1, TOKENS, CHANNELS], axis=-1)

    def linear(self, value, name, columns, rows, bias=False):
        matrix = self.normal(f"{name}.weight.transposed10", columns, rows)
        product = self.made("MatMul", [value, matrix], f"{name}.product", [1, TOKENS, rows])
        added = [product, self.normal(f"{name}.bias", rows)] if bias else []
        return self.made("Add", added, f"{name}.out", [1, TOKENS, rows]) if bias else product

    def heads(self, value, name, permutation=(0, 2, 1, 3)):
        sizes = [1, TOKENS, HEADS, CHANNELS // HEADS]
        shape = self.given(f"{name}.shape", np.array([1, -1, HEADS, CHANNELS // HEADS], np.int64))
        apart = self.made("Reshape", [value, shape], f"{name}.heads", sizes)
        return self.made("Transpose", [apart], f"{name}.turned", [sizes[i] for i in permutation], perm=permutation)

    def attention(self, value):
        query = self.heads(self.linear(value, "to_q", CHANNELS, CHANNELS), "q")
        key = self.heads(self.linear(value, "to_k", CHANNELS, CHANNELS), "k", (0, 2, 3, 1))
        values = self.heads(self.linear(value, "to_v", CHANNELS, CHANNELS, bias=True), "v")
        scores = self.made("MatMul", [query, key], "scores", [1, HEADS, TOKENS, TOKENS])
        shares = self.made("Softmax", [scores], "shares", [1, HEADS, TOKENS, TOKENS], axis=-1)
        mixed = self.made("MatMul", [shares, values], "mixed", [1, HEADS, TOKENS, CHANNELS // HEADS])
        turned = self.made("Transpose", [mixed], "turned", [1, TOKENS, HEADS, CHANNELS // HEADS], perm=(0, 2, 1, 3))
        shape = self.given("joined.shape", np.array([1, TOKENS, CHANNELS], np.int64))
        joined = self.made("Reshape", [turned, shape], "joined", [1, TOKENS, CHANNELS])
        return self.linear(joined, "to_out", CHANNELS, CHANNELS)

    def gated(self, value):
        both = self.linear(value, "proj", CHANNELS, 2 * WIDTH, bias=True)
        self.nodes.append(ir.node("Split", [both], {"axis": 2, "num_outputs": 2}, num_outputs=2))
        half, gate = self.nodes[-1].outputs
        for value, name in ((half, "half"), (gate, "gate")):
            value.name, value.shape, value.type = name, ir.Shape([1, TOKENS, WIDTH]), FLOAT
        function = self.made("Gelu", [gate], "gelu", [1, TOKENS, WIDTH])
        product = self.made("Mul", [half, function], "gated", [1, TOKENS, WIDTH])
        return self.linear(product, "down", WIDTH, CHANNELS)


def block_model(seed=0):
    """A transformer's block as it is traced: attention, a gated product and a last layer.

    x (1, 6, 32) -> out (1, 6, 32)
    """
    build, shape = Builder(seed), [1, TOKENS, CHANNELS]
    x = ir.Value(name="x", shape=ir.Shape(shape), type=FLOAT)
    between = build.made("Add", [build.attention(build.normalized(x, "norm1")), x], "between", shape)
    total = build.made("Add", [build.gated(build.normalized(between, "norm2")), between], "total", shape)
    out = build.linear(total, "last", CHANNELS, CHANNELS)
    graph = ir.Graph(
        [x], [out], nodes=build.nodes, initializers=build.weights, opset_imports={"": 21}, name="block"
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def block_inputs(seed=1):
    return {"x": np.random.default_rng(seed).standard_normal((1, TOKENS, CHANNELS)).astype(np.float32)}


def loud_block():
    """The block, with a channel of both normalizations a hundred times as large, and its weights a hundredth."""
    model, louder = block_model(), np.ones(CHANNELS, np.float32)
    louder[LOUD] = 100
    for name, value in model.graph.initializers.items():
        array = value.const_value.numpy()
        if name.startswith("norm"):
            value.const_value = ir.tensor(array * louder, name=name)
        elif name.startswith(("to_q.w", "to_k.w", "to_v.w", "proj.w")):
            value.const_value = ir.tensor(array / louder[:, None], name=name)
    return model


def block_statistics(model, runs=8):
    """Statistics of what flows into the block's layers, by name."""
    watched, statistics = model.clone(), {}
    wanted = {layer.input_name for layer in find_layers(model)}
    values = [value for node in watched.graph for value in node.outputs if value.name in wanted]
    watched.graph.outputs.extend(values)
    engine = session(watched)
    for seed in range(runs):
        for value, array in zip(values, engine.run(None, block_inputs(seed))[1:], strict=True):
            statistics.setdefault(value.name, TensorStatistics.empty(array.shape[-1])).add(array, -1)
    return statistics
