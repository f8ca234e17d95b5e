"""The page of predictions: one HTML file that needs nothing beside it, its plots inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..hardware import Prediction, Profile, Survey, Workload
from ..hardware.traffic import __doc__ as traffic_rule
from ..runtime.files import atomic_file
from .pages import render
from .prediction_plots import by_layer, energy_by_level, pareto, roofline, traffic
from .report_parts import digits

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "predict.html"
MAX_ROOFLINES = 4


@dataclass(frozen=True)
class Plot:
    """A plot, its caption, and what it shows in words."""

    title: str
    svg: Markup
    alt: str


def write_page(found: Survey, profiles: Sequence[Profile], workloads: Sequence[Workload], path: Path) -> None:
    """Write the page, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(render_page(found, profiles, workloads), "utf-8")


def render_page(found: Survey, profiles: Sequence[Profile], workloads: Sequence[Workload]) -> str:
    """The page as HTML. Names and texts of bundles, profiles and the command line are escaped."""
    filters = {"digits": digits}
    front = sorted((one for one in found.predictions if one.is_pareto), key=lambda one: one.frames_per_second)
    return render(
        TEMPLATE,
        filters,
        survey=found,
        profiles=profiles,
        workloads=workloads,
        front=front,
        plots=_plots(found, profiles, front),
        traffic_rule=" ".join((traffic_rule or "").split()),
    )


def _plots(found: Survey, profiles: Sequence[Profile], front: Sequence[Prediction]) -> list[Plot]:
    predictions = found.predictions
    if not predictions:
        return []
    plots = [
        Plot("Frames per second and energy for a frame", pareto(predictions, "pareto"), _front_in_words(front)),
        Plot("Where the energy of a keyframe goes", energy_by_level(predictions, "levels"), "The table has the sums."),
        Plot("DRAM traffic of a keyframe", traffic(predictions, "traffic"), "The table has the numbers."),
    ]
    by_name = {profile.name: profile for profile in profiles}
    chosen = list(dict.fromkeys((one.device, one.label) for one in (*reversed(front), *predictions)))
    for device, label in chosen[:MAX_ROOFLINES]:
        title = f"Roofline of {device}, {label}"
        plots.append(Plot(title, roofline(by_name[device], found.costs[device, label], title), title))
    device, label = chosen[0]
    title = f"The UNet's layers on {device}, {label}"
    if "unet" in found.costs[device, label]:
        plots.append(Plot(title, by_layer(found.costs[device, label]["unet"], title), title))
    return plots


def _front_in_words(front: Sequence[Prediction]) -> str:
    return "; ".join(
        f"{number}: {one.device} {one.label}, 1 in {one.keyframe_every}: {digits(one.frames_per_second)} frames per "
        f"second at {digits(one.joules_per_frame)} J"
        for number, one in enumerate(front, 1)
    )
