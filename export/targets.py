"""What the engines of each target accept: the form of their graphs, the recipes that go, and where they are checked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from ..compress.recipe import Int4, Recipe, Rule
from ..runtime.backends.qnn_origin import SOCS
from ..runtime.errors import UserError


@dataclass(frozen=True)
class Form:
    """What a target asks of a graph.

    `checked_on`: a target whose backend opens the same engine file, or the same ONNX model, and measures the parity,
    where this one's device is seldom the machine that builds. `symmetric`: codes of activations have 0 for zero.
    `integers_of_onnxruntime`: integers in the forms that ONNX Runtime computes. `halves`: floats have 16 bits, whatever
    is asked for. `typed`: it computes in the types that the graph has, and takes weights of four bits from
    DequantizeLinear. `fixed_point`: what is not rounded is computed in float16, which is too coarse for the angles of
    timesteps, so that all has to be. `fixed_sides`: engines have one size and take one picture at a time. `on_device`:
    a bundle has what the device's own compiler makes an engine of, before the first run or by `outzoom compile`.
    """

    checked_on: str | None = None
    symmetric: bool = False
    integers_of_onnxruntime: bool = False
    halves: bool = False
    typed: bool = False
    fixed_point: bool = False
    fixed_sides: bool = False
    on_device: bool = False


QNN = Form(checked_on="onnxruntime", fixed_point=True, fixed_sides=True)
FORMS = {
    "onnxruntime": Form(integers_of_onnxruntime=True),
    "onnxruntime-mobile": Form(integers_of_onnxruntime=True),
    "onnxruntime-qnn": replace(QNN, on_device=True),
    **{f"onnxruntime-qnn-{soc.lower()}": QNN for soc in SOCS},
    "openvino-cpu": Form(),
    "openvino-gpu": Form(checked_on="openvino-cpu", symmetric=True, on_device=True),
    "openvino-npu": Form(checked_on="openvino-cpu", symmetric=True, halves=True, on_device=True),
    "tensorrt": Form(checked_on="onnxruntime", symmetric=True, typed=True, on_device=True),
    "tensorrt-rtx": Form(checked_on="onnxruntime", symmetric=True, typed=True, on_device=True),
}


def adapted(recipe: Recipe, target: str) -> Recipe:
    """The recipe in the form that a target's engines take; raises UserError for one that they don't."""
    if reason := refusal(recipe, target):
        raise UserError(f"the recipe '{recipe.name}' does not go for {target}: {reason}", hint="build another of both")
    if FORMS[target].typed:
        recipe = msgspec.structs.replace(recipe, rules=tuple(_with_positive_scales(rule) for rule in recipe.rules))
    activations = recipe.activations
    if activations is None or activations.range == "dynamic" or not FORMS[target].symmetric:
        return recipe
    return msgspec.structs.replace(recipe, activations=msgspec.structs.replace(activations, symmetric=True))


def _with_positive_scales(rule: Rule) -> Rule:
    """A rule whose engine computes from four bits, in the one form of them that a typed graph has."""
    if rule.engine != "int4" or not isinstance(rule.store, Int4):
        return rule
    return msgspec.structs.replace(rule, store=msgspec.structs.replace(rule.store, symmetric=True, positive=True))


def refusal(recipe: Recipe, target: str) -> str | None:
    """Why a target has no engines of a recipe; None: it has."""
    if FORMS[target].halves and recipe.compute == "float32":
        return "its device computes in 16 bits, the recipe asks for 32"
    everywhere = recipe.activations is not None and recipe.activations.everywhere
    if FORMS[target].fixed_point and not everywhere:
        return "its processor computes in fixed point, and the recipe leaves floats"
    if FORMS[target].symmetric and everywhere:
        return "it rounds all that is computed to asymmetric codes"
    if (groups := recipe.timestep_groups("unet")) > 1 and not FORMS[target].integers_of_onnxruntime:
        return f"it has ranges for {groups} groups of timesteps, which {target} computes in float"
    return None
