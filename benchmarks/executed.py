"""What engines compute in, which need not be what was asked for: each product of a graph, and the operator that ran it.

    python -m outzoom.benchmarks.executed BUNDLE...

ONNX Runtime is asked by a profile of one run, OpenVINO by the graph that it compiled. Both fuse nodes and rename them,
and both keep the names by which a node of the graph can be found again.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compress.layers import checkpoint_name
from ..runtime import open_manifest
from ..runtime.backends import Array, Loading, backend_for
from ..runtime.backends.onnxruntime import OnnxRuntime
from ..runtime.backends.openvino import OpenVino
from ..runtime.engines import segments_of
from ..runtime.inpainting import Inpainting
from ..runtime.shapes import dimensions
from .measure import random_feeds
from .results import Executed

UNKNOWN = "unknown"  # of a product that no operator was found for
FLOATS = {"float": "float32", "f32": "float32", "float16": "float16", "f16": "float16"}
FLOATS |= {"bfloat16": "bfloat16", "bf16": "bfloat16"}
INTEGER_OPERATORS = {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
INTEGER_OPERATORS |= {"MatMulInteger", "ConvInteger"}
CONVERSIONS = ("Convert", "Subtract", "Multiply")  # what makes numbers of OpenVINO's codes
MOVES = ("Reshape", "Slice", "Transpose")
NO_COMPUTE = ("Const", "Convert", "Input", "Output", "Reorder", "Reshape", "Transpose")
RENAMED = re.compile(r"(_token_\d+|_nchwc|/.*)$")  # what engines add to the names of nodes that they made of others


@dataclass(frozen=True)
class Product:
    """A convolution or a product of a graph as it was built; `kind` is Conv, MatMul (Gemm, too) or attention."""

    name: str
    alias: str  # what an engine may call it instead: the tensor that it makes, or the sum with its bias
    layer: str
    kind: str
    asked: str | None  # int8, or int4 weights; None leaves it to the engine
    weight_bits: int | None = None


@dataclass(frozen=True)
class Ran:
    """What a product ran in, and whether it skipped weights that are zero."""

    computed_in: str
    sparse: bool = False


def executed(inpainting: Inpainting, component: str, feeds: Mapping[str, Array]) -> Executed | None:
    """What the engine of a component computes in; None for a target that can't be asked, and for one in segments."""
    manifest = inpainting.bundle.manifest
    if segments_of(inpainting.bundle, component):
        return None
    backend = backend_for(manifest.target)
    loading = loading_of(inpainting, component)
    with inpainting.engine_file(component) as file:
        if isinstance(backend, OnnxRuntime):
            return run_by_onnxruntime(backend, file, backend.options(loading), feeds)
        if isinstance(backend, OpenVino):
            return run_by_openvino(file, backend.compiled(file, loading))
    return None


def loading_of(inpainting: Inpainting, component: str) -> Loading:
    """How the engine of a component is loaded at the size of the inpainting."""
    manifest = inpainting.bundle.manifest
    sides = dimensions(inpainting.size, manifest.vae_scale_factor)
    return Loading(manifest.recipe.compute, manifest.components[component].inputs, sides)


def run_by_onnxruntime(backend: OnnxRuntime, file: Path, options: Any, feeds: Mapping[str, Array]) -> Executed:
    """What ONNX Runtime computes a model in, by the profile of a run."""
    products = list(onnx_products(file))
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = backend.session(file, options)
        session.run(None, dict(feeds))
        return summary(products, profiled(products, Path(session.end_profiling())))


def run_by_openvino(file: Path, compiled: Any) -> Executed:
    """What OpenVINO computes a model in, by what it compiled it to."""
    products = list(openvino_products(file))
    return summary(products, compiled_to(products, compiled.get_runtime_model()))


def summary(products: Iterable[Product], ran: Mapping[str, Ran]) -> Executed:
    """How many products of each kind ran in which type, how many sparse, and the layers that ran not as asked."""
    counts: dict[str, Counter[str]] = {}
    sparse, unmet = 0, []
    for product in products:
        found = ran.get(product.name, Ran(UNKNOWN))
        counts.setdefault(product.kind, Counter())[found.computed_in] += 1
        sparse += found.sparse
        if product.asked is not None and found.computed_in != product.asked:
            unmet.append(f"{product.layer}: {found.computed_in}, not {product.asked}")
    return Executed({kind: dict(count.most_common()) for kind, count in sorted(counts.items())}, sparse, tuple(unmet))


def onnx_products(file: Path) -> Iterator[Product]:
    """The products of an ONNX model; of its weights nothing is read."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvInteger", "MatMul", "MatMulInteger", "MatMulNBits", "Gemm"):
            continue
        sources = [producers.get(name) for name in node.input[:2]]
        weight = node.input[1]
        if sources[1] is not None and sources[1].op_type in ("Cast", "DequantizeLinear"):
            weight = sources[1].input[0]
        kind = "Conv" if node.op_type.startswith("Conv") else "MatMul" if weight in weights else "attention"
        asked, bits = None, None
        if node.op_type == "MatMulNBits":
            (bits,) = (attribute.i for attribute in node.attribute if attribute.name == "bits")
            asked = f"int{bits} weights"
        elif node.op_type.endswith("Integer") or all(one and one.op_type == "DequantizeLinear" for one in sources):
            asked = "int8"
        layer = node.name if kind == "attention" else _layer(weight)
        yield Product(node.name, node.output[0], layer, kind, asked, bits)


def profiled(products: Iterable[Product], profile: Path) -> dict[str, Ran]:
    """What ONNX Runtime ran for each product, by its name, read from the profile of a run."""
    known = _by_names(products)
    ran: dict[str, Ran] = {}
    for event in json.loads(profile.read_bytes()):
        if event["cat"] != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        product = known.get(RENAMED.sub("", event["name"].removesuffix("_kernel_time")))
        if product is not None and (found := _onnx_type(event["args"], product)):
            ran[product.name] = Ran(found)
    return ran


def _onnx_type(operator: Mapping[str, Any], product: Product) -> str | None:
    """What an operator of a profile computes in; None if it is no product."""
    kind = str(operator["op_name"])
    if kind in INTEGER_OPERATORS:
        return "int8"
    if kind == "MatMulNBits":
        return f"int{product.weight_bits or 8} weights"
    if not any(part in kind for part in ("Conv", "MatMul", "Gemm")):
        return None
    (dtype,) = operator["input_type_shape"][0]
    return FLOATS.get(dtype, str(dtype))


def openvino_products(file: Path) -> Iterator[Product]:
    """The products of an OpenVINO model."""
    import openvino

    for node in openvino.Core().read_model(file).get_ops():
        if node.get_type_name() not in ("Convolution", "MatMul"):
            continue
        name = node.get_friendly_name()
        data, weight = (_origin(node, index) for index in (0, 1))
        has_weight = weight.get_type_name() == "Constant"
        dtype = weight.get_element_type().get_type_name() if has_weight else ""
        kind = "Conv" if node.get_type_name() == "Convolution" else "MatMul" if has_weight else "attention"
        asked = None
        if dtype in ("i4", "u4"):
            asked = "int4 weights"
        elif data.get_type_name() == "FakeQuantize" and (dtype == "i8" or weight.get_type_name() == "FakeQuantize"):
            asked = "int8"
        users = [user.get_node() for user in node.output(0).get_target_inputs()]
        alias = RENAMED.sub("", name)
        if alias == name and [user.get_type_name() for user in users] == ["Add"]:
            alias = users[0].get_friendly_name()
        yield Product(name, alias, _layer(weight.get_friendly_name()) if has_weight else name, kind, asked)


def _origin(node: Any, index: int) -> Any:
    """What an input is made of, before its codes became numbers."""
    found = node.input_value(index).get_node()
    passed = CONVERSIONS if index == 0 else (*CONVERSIONS, *MOVES)
    while found.get_type_name() in passed:
        found = found.input_value(0).get_node()
    return found


def compiled_to(products: Iterable[Product], runtime_model: Any) -> dict[str, Ran]:
    """What OpenVINO runs for each product, by its name, read from the graph that it executes.

    The primitive's name ends with the type of its data. Where the runtime precision is an integer and that is not,
    only the weights are integers.
    """
    known = _by_names(products)
    ran: dict[str, Ran] = {}
    for node in runtime_model.get_ops():
        info = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        if info["layerType"] in NO_COMPUTE:
            continue
        primitive, precision = info["primitiveType"], info["runtimePrecision"]
        dtype = primitive.rpartition("_")[2]
        computed_in = "int8" if dtype in ("I8", "i8") else FLOATS.get(dtype, dtype)
        if computed_in != "int8" and re.fullmatch(r"[iu][48]", precision):
            computed_in = f"int{precision[1]} weights"
        names = {node.get_friendly_name(), *info["originalLayersNames"].split(",")}
        for name in known.keys() & {RENAMED.sub("", name) for name in names}:
            ran[known[name].name] = Ran(computed_in, "sparse" in primitive)
    return ran


def _by_names(products: Iterable[Product]) -> dict[str, Product]:
    products = list(products)
    return {product.alias: product for product in products} | {product.name: product for product in products}


def _layer(weight: str) -> str:
    """The checkpoint's name for a weight of the graph."""
    return checkpoint_name(re.sub(r"\.(int8|float16|float32|codes|cast)$", "", weight))


def main() -> None:
    """Print what the engines of bundles compute in, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    found: dict[str, dict[str, Any]] = {}
    for bundle in parser.parse_args().bundles:
        inpainting = Inpainting(open_manifest(bundle, verify=False))
        for component in inpainting.bundle.manifest.components:
            one = executed(inpainting, component, random_feeds(inpainting, component))
            found.setdefault(bundle.name, {})[component] = one and {
                "counts": one.counts, "sparse_layers": one.sparse_layers, "unmet": one.unmet,
            }  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
