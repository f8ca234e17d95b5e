"""1x1 convolutions as products: the same numbers, and a form that can be stored and computed in four bits."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import initializer, named, run

from outzoom.compress.layers import find_layers
from outzoom.compress.pointwise import pointwise_as_products

INPUTS, OUTPUTS, HEIGHT, WIDTH = 48, 32, 4, 5


def pointwise_model(kernel=(1, 1), batch=2, bias=True, attributes=None):
    """A convolution alone: picture (batch, 48, 4, 5) -> out (batch, 32, ..)."""
    rng = np.random.default_rng(0)
    picture = ir.Value(
        name="picture", shape=ir.Shape([batch, INPUTS, HEIGHT, WIDTH]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    weights = [initializer("conv.weight", rng.standard_normal((OUTPUTS, INPUTS, *kernel)).astype(np.float32))]
    weights += [initializer("conv.bias", rng.standard_normal(OUTPUTS).astype(np.float32))] if bias else []
    conv = ir.node("Conv", [picture, *weights], attributes or {})
    out = named(conv, "out", [batch, OUTPUTS, None, None])
    graph = ir.Graph([picture], [out], nodes=[conv], initializers=weights, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def picture():
    return {"picture": np.random.default_rng(1).standard_normal((2, INPUTS, HEIGHT, WIDTH)).astype(np.float32)}


def operators(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [2, "batch"])
def test_a_product_makes_what_the_convolution_makes(bias, batch):
    model = pointwise_model(bias=bias, batch=batch)
    product = pointwise_as_products(model)
    assert operators(product) == ["Transpose", "MatMul", *(["Add"] if bias else []), "Transpose"]
    # float32 sums of 48 products, in another order
    assert np.allclose(run(model, picture()), run(product, picture()), rtol=1e-5, atol=1e-5)
    assert operators(model) == ["Conv"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [((3, 3), {}), ((1, 1), {"strides": [2, 2]}), ((1, 1), {"pads": [1, 1, 1, 1]}), ((1, 2), {})],
)
def test_other_convolutions_stay(kernel, attributes):
    model = pointwise_model(kernel, attributes=attributes)
    assert operators(pointwise_as_products(model)) == ["Conv"]


def test_the_layer_keeps_its_name_and_its_matrix():
    (conv,) = find_layers(pointwise_model())
    (product,) = find_layers(pointwise_as_products(pointwise_model()))
    assert (conv.name, conv.op_type, product.op_type) == (product.name, "Conv", "MatMul")
    assert np.array_equal(conv.matrix(), product.matrix())
