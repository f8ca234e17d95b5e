"""Small graphs made by hand, with a layer of every kind that can be compressed."""

import numpy as np
import onnx_ir as ir
import onnxruntime

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
