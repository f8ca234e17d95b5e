"""Plots of predictions: rooflines, energy by level and by layer, bytes by operand, and the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..hardware import Cost, Prediction, Profile
from ..hardware.costs import LEVELS
from ..runtime.errors import printable
from ..runtime.files import atomic_file
from .plots import COLOURS, TEXT, draw_chart, draw_figure, label_axes

if TYPE_CHECKING:
    from markupsafe import Markup

    from .prediction import Row

WIDTH_INCHES = 6.2
MAX_BARS = 24
LEVEL_LABELS = dict(
    zip(LEVELS, ("arithmetic", "instructions", "memory on the chip", "DRAM", "idle power x time"), strict=True)
)
OPERANDS = ("inputs", "weights", "outputs")
MARKERS = {"text_encoder": "o", "unet": "s", "unet_shallow": "D", "vae_encoder": "^", "vae_decoder": "v"}
OTHERS = "no products"
KIND_COLOURS = {"conv": 0, "depthwise": 6, "linear": 1, "attention": 2, OTHERS: 7}
MAX_BINS = 100
SLOWEST = 1e-4  # of the fastest, that the Pareto plot still shows


def roofline(profile: Profile, costs: dict[str, Cost], name: str) -> Markup:
    """Of one device: what it could do at each number of operations per byte, and what each component does."""

    def draw(axes: Any) -> None:
        intensities = np.geomspace(1, 1e4, 200)
        bandwidth = profile.bandwidth_gb_per_s.value * 1e9
        for index, (data_type, peak) in enumerate(profile.peak_tops.items()):
            roof = np.minimum(intensities * bandwidth, peak.value * 1e12) / 1e12
            axes.plot(intensities, roof, color=COLOURS[index], linewidth=1.5, label=f"{data_type}, peak")
        for component, marker in MARKERS.items():
            if (found := costs.get(component)) is None or not found.dram_bytes.sum() or not found.seconds:
                continue
            operations = 2 * sum(layer.macs for layer in found.layers)
            place = operations / found.dram_bytes.sum(), operations / found.seconds / 1e12
            axes.plot(*place, marker, color=TEXT, markersize=6, label=component.replace("_", " "))
        axes.set(xscale="log", yscale="log")
        label_axes(axes, "operations per byte of DRAM", "TOPS")
        axes.legend(fontsize=7.5, frameon=False, labelcolor=TEXT, loc="lower right")

    return _plot(draw, name, 3.3)


def energy_by_level(predictions: Sequence[Prediction], name: str) -> Markup:
    """Joules of a keyframe, stacked by where they go, a bar for each device and recipe."""
    shown = sorted(_first_of_each(predictions), key=lambda one: one.keyframe_joules)[:MAX_BARS]

    def draw(axes: Any) -> None:
        start = np.zeros(len(shown))
        for index, level in enumerate(LEVELS):
            joules = np.array([_level_joules(one, level) for one in shown])
            axes.barh(
                range(len(shown)), joules, left=start, color=COLOURS[index], height=0.7, label=LEVEL_LABELS[level]
            )
            start += joules
        axes.set_yticks(range(len(shown)), [printable(f"{one.device} {one.label}")[:38] for one in shown])
        axes.invert_yaxis()
        label_axes(axes, "J per keyframe (modelled)", "")
        _legend_above(axes, 3)

    return _plot(draw, name, 0.9 + 0.22 * len(shown))


def by_layer(cost: Cost, name: str) -> Markup:
    """Of one component, layer after layer, some at a time: energy above, bytes of DRAM by operand below."""
    count = len(cost.layers)
    bins = np.arange(count) * min(MAX_BINS, count) // count
    kinds = np.array([layer.kind if layer.kind in KIND_COLOURS else OTHERS for layer in cost.layers])
    joules = cost.joules.sum(axis=1) * 1e3
    energy = {kind: np.bincount(bins, joules * (kinds == kind)) for kind in KIND_COLOURS if (kinds == kind).any()}
    moved = {one: np.bincount(bins, cost.dram_bytes[:, place] / 1e6) for place, one in enumerate(OPERANDS)}

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        _stack(top, energy, [COLOURS[KIND_COLOURS[kind]] for kind in energy])
        label_axes(top, "", "mJ")
        _stack(bottom, moved, COLOURS[3:])
        label_axes(bottom, f"layers in their order, {count / (bins[-1] + 1):.0f} at a time", "MB of DRAM")

    return draw_figure(draw, name, 4.2, WIDTH_INCHES)


def _stack(axes: Any, parts: dict[str, Any], colours: Sequence[str]) -> None:
    """Bars on top of each other, a legend above them."""
    start = np.zeros(len(next(iter(parts.values()))))
    for (label, values), colour in zip(parts.items(), colours, strict=False):
        axes.bar(range(len(values)), values, bottom=start, width=0.9, color=colour, label=label)
        start += values
    _legend_above(axes, len(parts))


def _legend_above(axes: Any, columns: int) -> None:
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    axes.legend(fontsize=7.5, frameon=False, labelcolor=TEXT, ncols=columns, **place)


def traffic(predictions: Sequence[Prediction], name: str) -> Markup:
    """Gigabytes that cross to DRAM for a keyframe."""
    shown = sorted(_first_of_each(predictions), key=lambda one: one.dram_gigabytes_per_keyframe)[:MAX_BARS]

    def draw(axes: Any) -> None:
        values = [one.dram_gigabytes_per_keyframe for one in shown]
        axes.barh(range(len(shown)), values, color=COLOURS[3], height=0.7)
        axes.set_yticks(range(len(shown)), [printable(f"{one.device} {one.label}")[:38] for one in shown])
        axes.invert_yaxis()
        label_axes(axes, "GB of DRAM per keyframe (modelled)", "")

    return _plot(draw, name, 0.8 + 0.22 * len(shown))


def pareto(predictions: Sequence[Prediction], name: str) -> Markup:
    """Frames per second against energy for a frame; the front is connected, and its devices named."""

    def draw(axes: Any) -> None:
        fastest = max(one.frames_per_second for one in predictions)
        near = [one for one in predictions if one.frames_per_second > SLOWEST * fastest]
        labels = list(dict.fromkeys(one.label for one in near))
        for index, label in enumerate(labels):
            shown = [one for one in near if one.label == label]
            places = [one.frames_per_second for one in shown], [one.joules_per_frame for one in shown]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(*places, "o", color=colour, markersize=4.5, alpha=0.8, label=printable(label)[:24])
        front = sorted((one for one in predictions if one.is_pareto), key=lambda one: one.frames_per_second)
        line = [one.frames_per_second for one in front], [one.joules_per_frame for one in front]
        axes.plot(*line, color=TEXT, linewidth=1, label="the front")
        for number, one in enumerate(front, 1):
            place = (one.frames_per_second, one.joules_per_frame)
            axes.annotate(str(number), place, (-4, -10), textcoords="offset points", fontsize=8, color=TEXT)
        axes.set(xscale="log", yscale="log")
        label_axes(axes, "frames per second", "J per frame (modelled)")
        axes.legend(fontsize=7.5, frameon=False, labelcolor=TEXT)

    return _plot(draw, name, 3.6)


def against_reality(rows: Sequence[Row], file: Path) -> None:
    """Predicted against measured milliseconds, a point for each component and bundle, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    targets = list(dict.fromkeys(row.bundle.rpartition("-")[0] for row in rows))
    for index, target in enumerate(targets):
        for component, marker in MARKERS.items():
            chosen = [row for row in rows if row.component == component and row.bundle.rpartition("-")[0] == target]
            places = [row.typical_ms for row in chosen], [row.predicted_ms for row in chosen]
            label = f"{target}, {component.replace('_', ' ')}"
            axes.plot(*places, marker, color=COLOURS[index], label=label, markersize=5, alpha=0.75)
            for row in chosen:
                between = [row.quickest_ms, row.slowest_ms]
                axes.plot(between, [row.predicted_ms] * 2, color=COLOURS[index], linewidth=0.6, alpha=0.5)
    ends = np.array([0.8 * min(row.quickest_ms for row in rows), 1.25 * max(row.slowest_ms for row in rows)])
    axes.plot(ends, ends, color="#555", linewidth=1)
    axes.fill_between(ends, 0.8 * ends, 1.2 * ends, color="#999", alpha=0.2, label="within 20%", linewidth=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="measured, ms (median of the passes' fastest runs)",
        ylabel="predicted from the calibration, ms",
    )
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)
    with atomic_file(file) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _first_of_each(predictions: Sequence[Prediction]) -> list[Prediction]:
    """One for each device and recipe: a keyframe costs the same at every interval."""
    return list({(one.device, one.label): one for one in reversed(predictions)}.values())


def _level_joules(one: Prediction, level: str) -> float:
    components = (each for name, each in one.components.items() if name in ("unet", "vae_encoder", "vae_decoder"))
    return sum(each.energy_by_level_joules[level] * each.calls_per_keyframe for each in components)


def _plot(draw: Callable[[Any], None], name: str, height_inches: float) -> Markup:
    return draw_chart(draw, name, height_inches, WIDTH_INCHES)
