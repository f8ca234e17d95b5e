"""What a recipe says: for each layer, by component and name, what is done to its weight."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import msgspec

from ..runtime.bundle import COMPONENTS

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Operator = Literal["Conv", "MatMul", "Gemm", "Gather"]
OPERATORS: tuple[Operator, ...] = ("Conv", "MatMul", "Gemm", "Gather")
ComponentName = Literal["text_encoder", "unet", "vae_encoder", "vae_decoder"]
Kind = Literal["channels", "neurons", "heads"]
FLOWS_INTO: dict[Kind, tuple[str, ...]] = {  # the layers whose inputs go, with what makes them
    "channels": ("*.resnets.*.conv2.weight",),
    "neurons": ("*.ff.net.2.weight", "*.mlp.fc2.weight"),
    "heads": ("*.to_out.0.weight", "*.self_attn.out_proj.weight"),
}


class Prune(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Set a fraction of the weights to zero: those of the lowest scores of the layer, of each row or of all layers.

    A score is the weight's magnitude, by "wanda" times the root mean square of the input that it meets. "sparsegpt"
    takes those of a layer that are the least missed, and changes the others to make up for them.
    """

    fraction: Fraction
    scope: Literal["layer", "row", "global"] = "layer"
    scores: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude"

    def __post_init__(self) -> None:
        """Refuse a scope that the scores do not have."""
        if self.scores == "sparsegpt" and self.scope != "layer":
            raise ValueError(f'scores = "sparsegpt" compares within a layer, got scope = "{self.scope}"')


class Sparsify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keep `n` of each `m` neighbouring inputs: the largest, or by "sparsegpt" those that are the least missed.

    The latter changes what is kept, so that it makes up for what is lost.
    """

    n: Annotated[int, msgspec.Meta(ge=1, le=15)]
    m: Annotated[int, msgspec.Meta(ge=2, le=16)]
    method: Literal["magnitude", "sparsegpt"] = "magnitude"

    def __post_init__(self) -> None:
        """Refuse what would keep all."""
        if not self.n < self.m:
            raise ValueError(f"n must be below m, got {self.n}:{self.m}")


class KMeans(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="kmeans"):
    """Share weights: a codebook of 2**bits values for each of `groups` runs of output channels.

    There are fewer groups where the channels do not divide into so many: as many as divide both.

    With `importance` the squared errors that it makes small are weighted by the mean squares of the inputs.
    """

    bits: Annotated[int, msgspec.Meta(ge=1, le=8)]
    groups: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    importance: bool = False


class Int4(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="int4"):
    """Four bits for each weight, a scale for each `block` inputs.

    Weights are rounded to the nearest, or by "gptq" so that they make up for each other's errors, or by "awq" after
    inputs that matter more got finer steps (linear layers; others are rounded to the nearest). With `importance`
    the squared errors that `clip` makes small are weighted by the mean squares of the inputs. Scales of symmetric codes
    are of either sign, which is more exact, or `positive`.
    """

    block: Literal[16, 32, 64, 128] = 64
    symmetric: bool = True
    clip: Literal["none", "mse"] = "mse"
    rounding: Literal["nearest", "gptq", "awq"] = "nearest"
    importance: bool = False
    positive: bool = False


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to the layers that it is for: first pruned, then sparsified, then stored.

    `engine` is the type that the weight has in the engine, to which it is expanded when the bundle is opened.
    """

    components: tuple[ComponentName, ...] = COMPONENTS  # type: ignore[assignment]
    layers: tuple[str, ...] = ("*",)
    operators: tuple[Operator, ...] = OPERATORS
    prune: Prune | None = None
    sparsify: Sparsify | None = None
    store: KMeans | Int4 | None = None
    engine: Literal["float32", "float16", "int8", "int4"] = "float16"

    def __post_init__(self) -> None:
        """Refuse an engine type that the weights are not stored for."""
        if self.engine == "int4" and not isinstance(self.store, Int4):
            raise ValueError('engine = "int4" needs store = { method = "int4" }')
        rounding = self.store.rounding if isinstance(self.store, Int4) else "nearest"
        if rounding == "gptq" and (self.prune or self.sparsify):
            raise ValueError('rounding = "gptq" would fill what was set to zero; "nearest" and "awq" do not')
        if rounding != "nearest" and isinstance(self.store, Int4) and self.store.importance:
            raise ValueError(f'rounding = "{rounding}" looks at the inputs by itself: leave importance out')
        if self.prune and self.sparsify and self.sparsify.method == "sparsegpt":
            raise ValueError('sparsify by "sparsegpt" would fill what was pruned; "magnitude" does not')
        if rounding == "awq" and self.engine == "int8":
            raise ValueError(
                'rounding = "awq" scales the inputs, which an int8 engine rounds; "nearest" and "gptq" do not'
            )

    @property
    def needs_covariance(self) -> bool:
        """Whether it needs to know how a layer's inputs go together."""
        gptq = isinstance(self.store, Int4) and self.store.rounding == "gptq"
        pruned = self.prune is not None and self.prune.scores == "sparsegpt"
        return gptq or pruned or (self.sparsify is not None and self.sparsify.method == "sparsegpt")

    @property
    def needs_inputs(self) -> bool:
        """Whether it needs statistics of a layer's inputs."""
        awq = isinstance(self.store, Int4) and self.store.rounding == "awq"
        weighted = awq or (self.store is not None and self.store.importance)
        return self.needs_covariance or weighted or (self.prune is not None and self.prune.scores == "wanda")

    def takes(self, component: str, operator: str, layer: str) -> bool:
        """Whether it is for that layer."""
        named = any(fnmatchcase(layer, pattern) for pattern in self.layers)
        return named and component in self.components and operator in self.operators


class Structured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Remove a fraction of the channels in ResNet blocks, the feed-forward neurons or the attention heads.

    A block is named by the weight that they flow into; at least one stays, and of channels whole groups of the
    normalization go. With `correct` that weight is changed so that what stays makes up for what goes.
    """

    kind: Kind
    fraction: Fraction
    components: tuple[ComponentName, ...] = COMPONENTS  # type: ignore[assignment]
    blocks: tuple[str, ...] = ("*",)
    correct: bool = True

    def is_kind(self, layer: str) -> bool:
        """Whether what flows into the layer is of its kind."""
        return any(fnmatchcase(layer, pattern) for pattern in FLOWS_INTO[self.kind])

    def takes(self, component: str, layer: str) -> bool:
        """Whether it is for the block that flows into that layer."""
        named = any(fnmatchcase(layer, pattern) for pattern in self.blocks)
        return named and component in self.components and self.is_kind(layer)


class Activations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Round what flows into int8 layers to eight bits as well, so that they compute in integers.

    `range` is how the ends of the eight bits are chosen: from calibration, or, "dynamic", in each run from what flows.
    `symmetric` asks for codes of int8 that have 0 for zero, `products` for those of attention, too. With
    `timestep_groups` the UNet has ranges of its own for as many parts of the schedule. `everywhere` rounds all that
    goes from an operator to the next, to `bits` bits, or 16 in the components `wide`: see fixed_point.py.
    """

    range: Literal["minmax", "percentile", "mse", "dynamic"] = "mse"
    symmetric: bool = False
    products: bool = False
    timestep_groups: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    components: tuple[ComponentName, ...] = COMPONENTS  # type: ignore[assignment]
    everywhere: bool = False
    bits: Literal[8, 16] = 8
    wide: tuple[ComponentName, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what the operator that rounds dynamically does not do."""
        if self.range == "dynamic" and (self.symmetric or self.products):
            asked = "symmetric" if self.symmetric else "products"
            raise ValueError(f'range = "dynamic" has asymmetric codes and is for layers alone: leave {asked} out')
        if self.everywhere and (self.range == "dynamic" or self.symmetric or self.timestep_groups > 1):
            raise ValueError("everywhere asks for one asymmetric range for each tensor, measured before")
        if not self.everywhere and (self.bits > 8 or self.wide):
            raise ValueError("layers compute with activations of 8 bits; 16 are for everywhere = true")


class Smooth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Move what loud channels of int8 linear layers' inputs have into the weights: at `alpha` 1 all, at 0 nothing.

    Inputs that can't be divided in what makes them stay as they are.
    """

    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    components: tuple[ComponentName, ...] = COMPONENTS  # type: ignore[assignment]
    layers: tuple[str, ...] = ("*",)


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The zooms on which activations are measured: for each prompt, keyframes out of a picture.

    `pictures` are files, relative to the recipe's; they and the prompts take turns, until each was used. Without any,
    it is the demo's picture.
    """

    pictures: tuple[str, ...] = ()
    prompts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = (
        "an underwater reef with red fish and red corals",
        "a night sky with a full moon over dark hills",
        "a green meadow with yellow flowers under a blue sky",
        "a town with red roofs at noon",
    )
    keyframes: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2
    steps: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    guidance: Annotated[float, msgspec.Meta(ge=0, le=100)] = 3.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0


class Mixed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For each layer without a rule one of `choices`, so that all fit into a budget at the least error.

    The budget is `bits` for each of their weights, on average, or `budget_mb` for the whole bundle. How much a layer
    matters is measured on `samples` runs of each component, recorded as for calibration.
    """

    choices: Annotated[tuple[Rule, ...], msgspec.Meta(min_length=2)]
    bits: Annotated[float, msgspec.Meta(gt=0, le=32)] = 4.0
    budget_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    samples: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2

    def __post_init__(self) -> None:
        """Refuse choices that can't be compared, or that another rule would come before."""
        if len({choice.engine for choice in self.choices}) > 1 or self.choices[0].engine == "int4":
            raise ValueError("the choices of a mixed recipe have one engine: float32, float16 or int8")
        if any(choice.needs_inputs or (choice.prune and choice.prune.scope == "global") for choice in self.choices):
            raise ValueError("the choices of a mixed recipe look at one layer's weights, and not at inputs")
        if any(choice.layers != ("*",) or len(choice.components) < len(COMPONENTS) for choice in self.choices):
            raise ValueError("the choices of a mixed recipe are for all layers; give some a rule of their own instead")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a bundle's weights are stored, what it computes in, and the least parity it may have.

    Of several rules for a layer the first counts; `weights` is the type of the layers without one.
    """

    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]  # becomes part of a folder's name
    description: str
    weights: Literal["float32", "float16"]
    compute: Literal["float32", "fastest"]
    min_psnr_db: Annotated[float, msgspec.Meta(ge=0, le=200)]
    entropy_coding: bool = True  # of what is stored, where that makes it smaller
    rules: tuple[Rule, ...] = ()
    activations: Activations | None = None
    smooth: Smooth | None = None
    mixed: Mixed | None = None
    structured: tuple[Structured, ...] = ()
    pointwise_as_products: bool = False  # 1x1 convolutions become MatMul, which can compute from four bits
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        """Refuse to smooth what is not rounded."""
        if self.smooth is not None and self.activations is None:
            raise ValueError("smooth makes activations easier to round, which takes activations: give both or neither")

    def rule(self, component: str, operator: str, layer: str) -> Rule | None:
        """The rule that counts for a layer; where a mixed recipe has not chosen yet, the first that it could be."""
        return next(iter(self.options(component, operator, layer)), None)

    def options(self, component: str, operator: str, layer: str) -> list[Rule]:
        """The rules that a layer may get: the first of `rules` that takes it, or else all choices that do."""
        given = next((rule for rule in self.rules if rule.takes(component, operator, layer)), None)
        choices = self.mixed.choices if self.mixed else ()
        return [given] if given else [rule for rule in choices if rule.takes(component, operator, layer)]

    def structured_entry(self, component: str, layer: str) -> Structured | None:
        """The entry of `structured` that counts for the block that flows into a layer."""
        return next((entry for entry in self.structured if entry.takes(component, layer)), None)

    def computes_in_integers(self, component: str, operator: str, layer: str) -> bool:
        """Whether both the weight of a layer and what flows into it are of eight bits."""
        rule = self.rule(component, operator, layer)
        return self.rounds_activations(component) and rule is not None and rule.engine == "int8"

    def smooths(self, component: str, operator: str, layer: str) -> bool:
        """Whether a layer's inputs are to be smoothed, if they can be."""
        named = self.smooth is not None and any(fnmatchcase(layer, pattern) for pattern in self.smooth.layers)
        return named and self.has_smoothed(component) and self.computes_in_integers(component, operator, layer)

    def has_smoothed(self, component: str) -> bool:
        """Whether layers of a component are to be smoothed."""
        return self.smooth is not None and component in self.smooth.components and self.rounds_activations(component)

    def measures(self, component: str, operator: str, layer: str) -> bool:
        """Whether statistics of what flows into a layer are needed."""
        rule = self.rule(component, operator, layer)
        needed = rule is not None and rule.needs_inputs
        needed = needed or self.structured_entry(component, layer) is not None
        return needed or self.computes_in_integers(component, operator, layer)

    def needs_calibration(self, component: str) -> bool:
        """Whether a component has to be run on calibration data."""
        needed = any(rule.needs_inputs and component in rule.components for rule in self.rules)
        needed = needed or self.narrows(component)
        return needed or self.rounds_activations(component)

    def rounds_products(self, component: str) -> bool:
        """Whether what flows into attention's products is rounded, as well."""
        settings = self.activations
        return (
            settings is not None and self.rounds_activations(component) and (settings.products or settings.everywhere)
        )

    def is_fixed_point(self, component: str) -> bool:
        """Whether all that a component computes is rounded."""
        return self.activations is not None and self.activations.everywhere and self.rounds_activations(component)

    def activation_bits(self, component: str) -> Literal[8, 16]:
        """Of how many bits the codes of a component's activations are."""
        settings = self.activations
        return 8 if settings is None else 16 if component in settings.wide else settings.bits

    def with_choices(self, chosen: Iterable[Rule]) -> Recipe:
        """The recipe when a choice was made: rules for one layer each, after those that it has."""
        return msgspec.structs.replace(self, rules=(*self.rules, *chosen), mixed=None)

    def timestep_groups(self, component: str) -> int:
        """Into how many parts the schedule is divided for the ranges of a component's activations."""
        timed = component == "unet" and self.rounds_activations(component)
        return self.activations.timestep_groups if timed and self.activations else 1

    def narrows(self, component: str) -> bool:
        """Whether parts of a component's blocks go."""
        return any(component in entry.components for entry in self.structured)

    def rounds_activations(self, component: str) -> bool:
        """Whether a component's activations are rounded to ranges that have to be measured."""
        settings = self.activations
        return settings is not None and settings.range != "dynamic" and component in settings.components

    def multiplies_dynamically(self, component: str) -> bool:
        """Whether the activations of a component's linear layers are rounded to ranges that each run has anew."""
        settings = self.activations
        return settings is not None and settings.range == "dynamic" and component in settings.components


class Left(msgspec.Struct, frozen=True):
    """A layer that a rule is for but can't take, or not wholly, and why."""

    layer: str
    reason: str
