"""Compress the weights of a graph, layer by layer, as a recipe says.

Each weight is read, compressed and written out before the next is read. In the graph it stays as a tensor that is
expanded from what was written, whenever somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd
from typing import Any, Literal

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime import packed
from ..runtime.errors import UserError
from ..runtime.packed import PackedTensor, expand
from . import int4, kmeans, pruning, sparsity
from .awq import awq_scales
from .cast import cast_weight
from .dequantize import dequantize_blocks, dequantize_weight
from .folding import SharedInput, fold, shared_inputs
from .gptq import gptq
from .inputs import MOST_COLUMNS, Inputs
from .layers import Layer, checkpoint_name, find_layers
from .matmul_nbits import multiply_by_blocks
from .packing import PackedWriter, stored_form
from .ranges import INT8_MAX
from .recipe import Int4, KMeans, Left, Prune, Recipe, Rule
from .scaling import divide_inputs

Arrays = dict[str, NDArray[Any]]


def compress_weights(
    model: ir.Model, component: str, recipe: Recipe, writer: PackedWriter, inputs: Inputs | None = None,
    dequantizes: bool = False,
) -> tuple[ir.Model, list[Left]]:  # fmt: skip
    """A copy of `model` with the weights that the recipe's rules take as they say, stored by `writer`.

    Also the layers that a rule is for but can't take, or not wholly. Rules that look at a layer's inputs need `inputs`.
    Weights of four bits are multiplied by MatMulNBits or, with `dequantizes`, come out of a DequantizeLinear.
    """
    model, left = model.clone(), []
    ruled = [(layer, recipe.rule(component, layer.op_type, layer.name)) for layer in find_layers(model)]
    thresholds = _thresholds(ruled, inputs)
    folded = _fold_factors(model, {layer.name: rule for layer, rule in ruled}, inputs)
    for layer, rule in ruled:
        if rule is None:
            continue
        matrix = _finite(layer)
        if reason := _refusal(layer, rule, matrix) or (_raggedness(layer, rule) if dequantizes else ""):
            left.append(Left(layer.name, f"stays as it is: {reason}"))
            continue
        if rule.needs_covariance and not _known(inputs).has_covariance(layer):
            left.append(Left(layer.name, f"is compressed without a look at its inputs: {_unmeasured(layer)}"))
        try:
            matrix = _with_zeros(layer, matrix, rule, thresholds.get(rule), inputs)
            if layer.name not in folded and layer.op_type in ("MatMul", "Gemm") and _has_awq(rule):
                factors = _awq_factors(layer, matrix, rule, inputs)
                divide_inputs(model, layer, factors)
                matrix = matrix * factors
            _compress_layer(model, layer, matrix, rule, writer, inputs, dequantizes)
        except ValueError as error:
            message = f"the recipe '{recipe.name}' can't be applied to '{layer.name}' of {component}: {error}"
            raise UserError(message, hint="give the layer a rule of its own") from error
    return model, left


def _thresholds(ruled: Iterable[tuple[Layer, Rule | None]], inputs: Inputs | None) -> dict[Rule, float]:
    """For each rule that prunes all of its layers alike: the score below which weights are zero."""
    histograms: dict[Rule, pruning.ScoreHistogram] = {}
    for layer, rule in ruled:
        if rule is not None and rule.prune is not None and rule.prune.scope == "global":
            histogram = histograms.setdefault(rule, pruning.ScoreHistogram())
            histogram.add(_scores(layer, _finite(layer), rule.prune, inputs))
    return {rule: one.threshold(rule.prune.fraction) for rule, one in histograms.items() if rule.prune is not None}


def _fold_factors(model: ir.Model, rules: Mapping[str, Rule | None], inputs: Inputs | None) -> set[str]:
    """Give AWQ's layers their factors where that takes no node in the graph; the names of those layers."""
    folded: set[str] = set()
    if inputs is None:
        return folded
    for shared in reversed(shared_inputs(model)):  # a layer's rows are divided before its columns are looked at
        rule = rules[shared.layers[0].name]
        if rule is not None and _folds(shared, rules):
            matrix = np.concatenate([_finite(layer) for layer in shared.layers])
            fold(shared, _awq_factors(shared.layers[0], matrix, rule, inputs))
            folded |= {layer.name for layer in shared.layers}
    return folded


def _folds(shared: SharedInput, rules: Mapping[str, Rule | None]) -> bool:
    """Whether AWQ takes all layers of an input alike, as they are, and each row of what makes it may be divided."""
    taken = [rules[layer.name] for layer in shared.layers]
    whole = all(rule is not None and _has_awq(rule) and not _has_zeros(rule) for rule in taken)
    alike = len({rule.store for rule in taken if rule is not None}) == 1
    makers = [rules.get(checkpoint_name(str(part.value.name))) for part in shared.makers]
    by_rows = not any(rule is not None and (rule.prune or isinstance(rule.store, KMeans)) for rule in makers)
    return not shared.obstacle and whole and alike and by_rows


def _has_awq(rule: Rule) -> bool:
    return isinstance(rule.store, Int4) and rule.store.rounding == "awq"


def _awq_factors(layer: Layer, matrix: NDArray[np.float32], rule: Rule, inputs: Inputs | None) -> NDArray[np.float32]:
    """What a layer's inputs are divided by; `matrix` has the rows of all layers that share them."""
    assert isinstance(rule.store, Int4)  # AWQ is one of its roundings
    return awq_scales(matrix, np.sqrt(_known(inputs).mean_squares(layer)), rule.store.block, rule.store.symmetric)


def _compress_layer(
    model: ir.Model, layer: Layer, matrix: NDArray[np.float32], rule: Rule, writer: PackedWriter, inputs: Inputs | None,
    dequantizes: bool,
) -> None:  # fmt: skip
    """Store a layer's weight as the rule says, and let the graph use it."""
    if rule.engine == "int4":
        assert isinstance(rule.store, Int4)  # the rule sees to that
        use = dequantize_blocks if dequantizes else multiply_by_blocks
        use(model, layer.value, _blocks(layer, matrix, rule.store, inputs))
        return
    tensor, arrays, unpacked = packed_form(layer, matrix, rule, inputs)
    weight = writer.lazy(writer.add(tensor, arrays, unpacked), tensor.name)
    if rule.engine == "int8":
        dequantize_weight(model, layer.value, weight, arrays["row_scales"], layer.permutation.index(0))
    else:
        cast_weight(model, layer.value, weight)


def packed_form(
    layer: Layer, matrix: NDArray[np.float32], rule: Rule, inputs: Inputs | None = None
) -> tuple[PackedTensor, Arrays, dict[str, int]]:
    """How a layer's matrix is stored by a rule, the arrays for it, and the bits of those that are small integers."""
    assert rule.engine != "int4"  # those are not packed, but in the graph
    scales = row_scales(matrix) if rule.engine == "int8" else None
    storage, arrays, unpacked = _stored(layer, matrix, rule, scales, inputs)
    if scales is not None:
        arrays["row_scales"] = scales
    name = f"{layer.value.name}.{rule.engine}"
    tensor = PackedTensor(name, storage, rule.engine, layer.matrix_shape, layer.permutation, tuple(arrays))
    return tensor, arrays, unpacked


def approximate(layer: Layer, rule: Rule, entropy_coding: bool) -> tuple[NDArray[np.float32], int]:
    """What the graph will have in place of a layer's weight by a rule that looks at no inputs, and its stored bytes."""
    matrix = _finite(layer)
    if _refusal(layer, rule, matrix):
        return layer.tensor(matrix), matrix.nbytes
    tensor, arrays, unpacked = packed_form(layer, _with_zeros(layer, matrix, rule, None, None), rule)
    stored, deflated = stored_form(arrays, unpacked, entropy_coding)
    weight = expand(msgspec.structs.replace(tensor, arrays=tuple(stored), deflated=deflated), stored)
    found = weight.astype(np.float32)
    if rule.engine == "int8":
        found *= np.expand_dims(arrays["row_scales"], [axis for axis in range(found.ndim) if layer.permutation[axis]])
    return found, sum(array.nbytes for array in stored.values())


def _finite(layer: Layer) -> NDArray[np.float32]:
    """A layer's weight as a matrix; raises UserError if it is not finite."""
    matrix = layer.matrix()
    if not np.isfinite(matrix).all():
        raise UserError(f"the weight '{layer.name}' holds NaN or infinities", hint="download the checkpoint again")
    return matrix


def _with_zeros(
    layer: Layer, matrix: NDArray[np.float32], rule: Rule, threshold: float | None, inputs: Inputs | None
) -> NDArray[np.float32]:
    """A layer's weight, pruned and sparsified as the rule says."""
    made_up_for = "sparsegpt" in (rule.prune and rule.prune.scores, rule.sparsify and rule.sparsify.method)
    covariance = _known(inputs).covariance(layer) if made_up_for else None
    if rule.prune and rule.prune.scores == "sparsegpt" and covariance is not None:
        matrix = sparsity.sparsegpt_unstructured(matrix, covariance, rule.prune.fraction).astype(np.float32)
    elif rule.prune and threshold is not None:
        matrix = pruning.prune_below(matrix, _scores(layer, matrix, rule.prune, inputs), threshold)
    elif rule.prune:
        scope: Literal["row", "layer"] = "row" if rule.prune.scope == "row" else "layer"
        matrix = pruning.prune(matrix, _scores(layer, matrix, rule.prune, inputs), rule.prune.fraction, scope)
    if rule.sparsify and rule.sparsify.method == "sparsegpt" and covariance is not None:
        matrix = sparsity.sparsegpt(matrix, covariance, rule.sparsify.n, rule.sparsify.m).astype(np.float32)
    elif rule.sparsify:
        kept = sparsity.nm_mask(pruning.magnitude_scores(matrix), rule.sparsify.n, rule.sparsify.m)
        matrix = np.where(kept, matrix, np.float32(0))
    return matrix


def _scores(layer: Layer, matrix: NDArray[np.float32], prune: Prune, inputs: Inputs | None) -> NDArray[np.float32]:
    """How much each weight matters; an embedding has no inputs, so there it is the magnitude."""
    if prune.scores == "wanda" and layer.op_type != "Gather":
        return pruning.wanda_scores(matrix, np.sqrt(_known(inputs).mean_squares(layer)))
    return pruning.magnitude_scores(matrix)


def row_scales(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """What one step of symmetric int8 is worth in each row, (rows,): the largest magnitude is 127 steps."""
    largest = np.abs(matrix).max(1) / np.float32(INT8_MAX)
    scales: NDArray[np.float32] = np.where(largest > 0, largest, np.float32(1))
    return scales


def _stored(
    layer: Layer, matrix: NDArray[np.float32], rule: Rule, scales: NDArray[np.float32] | None, inputs: Inputs | None
) -> tuple[packed.Storage, Arrays, dict[str, int]]:
    """The arrays that store a matrix."""
    if isinstance(rule.store, KMeans):
        groups, importance = gcd(len(matrix), rule.store.groups), _importance(layer, rule.store, inputs)
        shared = kmeans.compress(matrix, rule.store.bits, groups, importance, _has_zeros(rule))
        found: Arrays = {"indices": shared.indices, "codebook": shared.codebook}
        return packed.Shared(rule.store.bits), found, {"indices": rule.store.bits}
    if isinstance(rule.store, Int4):
        blocks = _blocks(layer, matrix, rule.store, inputs)
        found = {"codes": blocks.codes, "scales": blocks.scales}
        found |= {} if rule.store.symmetric else {"zero_points": blocks.zero_points}
        return packed.Blocks(rule.store.block), found, {"codes": 4}
    values = matrix.astype(rule.engine) if scales is None else in_steps(matrix, scales)
    if rule.sparsify:
        sparse = sparsity.pack(values, rule.sparsify.n, rule.sparsify.m)
        return packed.Sparse(rule.sparsify.n, rule.sparsify.m), {"values": sparse.values, "indices": sparse.indices}, {}
    if rule.prune:
        pruned = pruning.pack(values)
        return packed.Pruned(), {"mask": pruned.mask_bits, "values": pruned.values}, {}
    return packed.Plain(), {"values": values}, {}


def _blocks(layer: Layer, matrix: NDArray[np.float32], store: Int4, inputs: Inputs | None) -> int4.BlockWeights:
    covariance = _known(inputs).covariance(layer) if store.rounding == "gptq" else None
    if covariance is not None:
        return gptq(matrix, covariance, store.block, store.symmetric, store.clip, positive=store.positive)
    importance = _importance(layer, store, inputs)
    return int4.compress(matrix, store.block, store.symmetric, store.clip, importance, store.positive)


def _importance(layer: Layer, store: KMeans | Int4, inputs: Inputs | None) -> NDArray[np.float32] | None:
    """What the squared error of each column counts, (columns,); None if all count alike."""
    return _known(inputs).mean_squares(layer) if store.importance and layer.op_type != "Gather" else None


def _known(inputs: Inputs | None) -> Inputs:
    if inputs is None:
        raise ValueError("the recipe looks at the layers' inputs, and no statistics of them are given")
    return inputs


def in_steps(matrix: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """A matrix in whole steps of its rows' scales."""
    steps: NDArray[np.int8] = np.clip(np.rint(matrix / scales[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    return steps


def _has_zeros(rule: Rule) -> bool:
    return rule.prune is not None or rule.sparsify is not None


def _refusal(layer: Layer, rule: Rule, matrix: NDArray[np.float32]) -> str:
    """Why a rule can't take a layer; empty if it can."""
    if np.abs(matrix).max() > int4.FLOAT16_MAX and (rule.engine == "float16" or isinstance(rule.store, Int4)):
        return f"it holds weights beyond {int4.FLOAT16_MAX:g}, the largest number of float16"
    if rule.engine == "int4" and layer.op_type != "MatMul":
        also = ", or make products of 1x1 convolutions" if layer.op_type == "Conv" else ""
        return f"no engine computes a {layer.op_type} from four bits: give it a rule with engine int8 or float16{also}"
    return ""


def _raggedness(layer: Layer, rule: Rule) -> str:
    """Why a layer's rows can't be whole blocks of four bits; empty if they can."""
    if rule.engine == "int4" and isinstance(rule.store, Int4) and layer.columns % rule.store.block:
        return f"its {layer.columns} inputs are no whole blocks of {rule.store.block}"
    return ""


def _unmeasured(layer: Layer) -> str:
    """Why there is no covariance of a layer's inputs."""
    if layer.op_type == "Gather":
        return "an embedding is looked up, and has none"
    return f"{layer.columns} are too many for a covariance; at most {MOST_COLUMNS} are taken"
