"""The pipeline's answer: what a zoom costs on a device, and which of many devices and recipes are worth having."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..runtime.bundle import SHALLOW_UNET
from ..runtime.errors import UserError
from .costs import LEVELS, Cost, cost
from .profiles import Profile, with_changes
from .workload import Layer, Workload

MAX_STEPS = 1000
ONCE = ("text_encoder", "unet_text", "unet_time")  # their results are kept: run for a prompt, not for a keyframe


@dataclass(frozen=True)
class UseCase:
    """A zoom: denoising steps for each keyframe, twice with guidance; one frame in `keyframe_every` is painted.

    Of the steps 1 in `whole_every` runs the whole UNet, the others the shallow one of a bundle that has one.
    """

    steps: int = 20
    guidance: bool = True
    keyframe_every: int = 30
    battery_watt_hours: float | None = None
    whole_every: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps must be 1 to {MAX_STEPS}, got {self.steps}")
        if not 1 <= self.whole_every <= self.steps:
            raise UserError(f"the whole UNet runs in 1 step of 1 to {self.steps}, got {self.whole_every}")
        if not 1 <= self.keyframe_every <= 100_000:
            raise UserError(f"a keyframe is 1 in 1 to 100000 frames, got {self.keyframe_every}")
        if self.battery_watt_hours is not None and not 0 < self.battery_watt_hours < 1e6:
            raise UserError(f"a battery has more than 0 Wh, got {self.battery_watt_hours:g}")

    def calls(self, components: Iterable[str]) -> dict[str, int]:
        """How often each component runs for a keyframe; 0 for those that run once for a prompt."""
        components = list(components)
        if self.whole_every > 1 and SHALLOW_UNET not in components:
            raise UserError("there is no shallow UNet for the steps between", hint="export-all --shallow 1 makes one")
        texts, whole = 2 if self.guidance else 1, -(-self.steps // self.whole_every)
        several = {"unet": whole * texts, SHALLOW_UNET: (self.steps - whole) * texts, **dict.fromkeys(ONCE, 0)}
        return {name: several.get(name, 1) for name in components}

    def calls_once(self, components: Iterable[str]) -> dict[str, int]:
        """How often those run once before the zoom: for the prompt and the negative one, and for each timestep."""
        prompts = 2 if self.guidance else 1
        return {name: self.steps if name == "unet_time" else prompts for name in components if name in ONCE}


@dataclass(frozen=True)
class ComponentPrediction:
    """One run of a component."""

    latency_ms: float
    energy_joules: float
    dram_megabytes: float
    gmacs: float
    calls_per_keyframe: int
    bottleneck: str
    energy_by_level_joules: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """A workload on a device, all of it modelled; energy and power are of the processor and its DRAM alone."""

    device: str
    label: str  # the bundle's folder, or the recipe
    recipe: str
    keyframe_every: int
    steps: int
    guidance: bool
    keyframe_seconds: float
    keyframe_joules: float
    start_seconds: float  # before the first keyframe: the prompts
    frames_per_second: float
    joules_per_frame: float
    watts: float
    frames_per_joule: float  # frames per second and watt
    dram_gigabytes_per_keyframe: float
    battery_hours: float | None
    components: dict[str, ComponentPrediction]
    method: str = "modelled"
    is_pareto: bool = False
    what_if: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Refusal:
    """A device that can't run a recipe, and why."""

    device: str
    label: str
    reason: str


def component_costs(workload: Workload, profile: Profile, target: str = "") -> dict[str, Cost]:
    """What one run of each component costs.

    `target` matters to a measured device: by default the bundle's own, or the one that it was measured best with.
    """
    target = target or workload.target
    if profile.measured and not target:
        target = max(profile.measured, key=lambda name: len(profile.measured[name]))
    bits = 32 if workload.compute == "float32" else float_bits(profile, target)
    found = {name: cost(layers, profile, bits, target) for name, layers in workload.components.items()}
    if workload.width:
        found["between_frames"] = cost((_warp(workload),), profile, bits, target)
    return found


def float_bits(profile: Profile, target: str) -> int:
    """What a device computes floats in where it may choose; of a measured one that is what its engine did."""
    if profile.measured:
        return 16 if "float16" in profile.measured.get(target, {}) else 32
    return profile.float_bits


def predict(
    workload: Workload, profile: Profile, case: UseCase, costs: Mapping[str, Cost] | None = None, target: str = ""
) -> Prediction:
    """A zoom on a device; `costs`, if they are known already, are those of `component_costs`."""
    found = costs or component_costs(workload, profile, target)
    calls, once = case.calls(workload.components), case.calls_once(workload.components)
    keyframe = {name: (found[name].seconds, found[name].energy_joules) for name in workload.components}
    seconds = sum(calls[name] * keyframe[name][0] for name in calls)
    joules = sum(calls[name] * keyframe[name][1] for name in calls)
    between = case.keyframe_every - 1
    warp = found.get("between_frames")
    all_seconds = seconds + (between * warp.seconds if warp else 0)
    all_joules = joules + (between * warp.energy_joules if warp else 0)
    if not all_seconds > 0:
        raise UserError(f"'{workload.name}' has nothing that runs for a keyframe", hint="give a whole pipeline")
    watts = all_joules / all_seconds
    frames = case.keyframe_every
    return Prediction(
        device=profile.name,
        label=workload.label,
        recipe=workload.recipe,
        keyframe_every=frames,
        steps=case.steps,
        guidance=case.guidance,
        keyframe_seconds=seconds,
        keyframe_joules=joules,
        start_seconds=sum(once[name] * keyframe[name][0] for name in once),
        frames_per_second=frames / all_seconds,
        joules_per_frame=all_joules / frames,
        watts=watts,
        frames_per_joule=frames / all_joules,
        dram_gigabytes_per_keyframe=sum(calls[name] * float(found[name].dram_bytes.sum()) for name in calls) / 1e9,
        battery_hours=case.battery_watt_hours / watts if case.battery_watt_hours else None,
        components={name: _component(each, {**calls, **once}.get(name, between)) for name, each in found.items()},
    )


def _component(found: Cost, calls: int) -> ComponentPrediction:
    levels = dict(zip(LEVELS, found.joules.sum(axis=0).tolist(), strict=True))
    return ComponentPrediction(
        latency_ms=found.seconds * 1e3,
        energy_joules=found.energy_joules,
        dram_megabytes=float(found.dram_bytes.sum()) / 1e6,
        gmacs=sum(layer.macs for layer in found.layers) / 1e9,
        calls_per_keyframe=calls,
        bottleneck=found.bottleneck,
        energy_by_level_joules=levels,
    )


def _warp(workload: Workload) -> Layer:
    """A frame between keyframes: a picture of 8-bit RGB, read once and written once."""
    sides = (workload.height, workload.width)
    return Layer("warp", "move", 1, 3, 1, *sides, 1, 1, 1, 1, 8, 8, 8, op="Resize")


@dataclass(frozen=True)
class Survey:
    """Devices x recipes x intervals: what each costs, which can't be, and the costs by layer that it comes from.

    `costs` are by device and label, and by component.
    """

    predictions: tuple[Prediction, ...]
    refusals: tuple[Refusal, ...]
    costs: dict[tuple[str, str], dict[str, Cost]]


def survey(
    workloads: Sequence[Workload],
    profiles: Sequence[Profile],
    cases: Sequence[UseCase],
    what_if: Mapping[str, float] | None = None,
) -> Survey:
    """Predict every workload on every device in every case; what a device can't compute is refused, not an error.

    `what_if` changes figures of every device. Raises UserError for one that a device does not have, and for workloads
    or devices of the same name.
    """
    for names in ([one.label for one in workloads], [one.name for one in profiles]):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise UserError(f"'{twice[0]}' is given twice", hint="name each once, or copy a bundle to another name")
    predictions: list[Prediction] = []
    refusals: list[Refusal] = []
    costs: dict[tuple[str, str], dict[str, Cost]] = {}
    for profile in profiles:
        changed = with_changes(profile, what_if or {})
        for workload in workloads:
            try:
                found = component_costs(workload, changed)
            except UserError as error:
                refusals.append(Refusal(profile.name, workload.label, str(error)))
                continue
            costs[profile.name, workload.label] = found
            for case in cases:
                one = predict(workload, changed, case, found)
                predictions.append(replace(one, what_if=dict(what_if or {})))
    front = pareto_front(predictions)
    marked = tuple(replace(one, is_pareto=best) for one, best in zip(predictions, front, strict=True))
    return Survey(marked, tuple(refusals), costs)


def pareto_front(predictions: Sequence[Prediction]) -> list[bool]:
    """Which of them no other beats: as many frames per second for less energy a frame, or more for as much."""

    def beats(one: Prediction, other: Prediction) -> bool:
        ours = (one.frames_per_second, -one.joules_per_frame)
        theirs = (other.frames_per_second, -other.joules_per_frame)
        return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]

    return [not any(beats(other, one) for other in predictions) for one in predictions]
