"""The roofline: what each engine does per second over what it does per byte, beside what the machine could do.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009. Bytes
are those of every layer's operands, each moved once: what stays in a cache between layers makes an engine look better
than its place in the plot, never worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..runtime import open_manifest
from ..runtime.errors import OutzoomError
from .plots import COLOURS, TEXT, WIDTH_INCHES, draw_chart, label_axes
from .report_parts import Chart, Colours, digits
from .results import BundleResult, ComponentResult, Results, Roofs, Work

MARKERS = {"text_encoder": "o", "unet": "s", "vae_encoder": "^", "vae_decoder": "v"}
INTENSITIES = (1.0, 1e4)  # operations per byte, from where to where roofs are drawn


def with_work(result: BundleResult, bundle: Path) -> BundleResult:
    """The result with what each engine has to do, where the packages are there that read its graph."""
    try:
        from ..hardware import bundle_workload

        layers = bundle_workload(open_manifest(bundle, verify=False)).components
    except (ImportError, OutzoomError):  # a target whose graphs are not read, such as .ort files
        return result
    components = {
        name: msgspec.structs.replace(
            one,
            work=Work(
                sum(layer.macs for layer in layers[name]),
                round(sum(layer.input_bytes + layer.weight_bytes + layer.output_bytes for layer in layers[name])),
            ),
        )
        for name, one in result.components.items()
    }
    return msgspec.structs.replace(result, components=components)


def measured_roofs() -> Roofs | None:
    """Of this machine, if it was calibrated."""
    from ..hardware import read_profile
    from ..hardware.profiles import HOST, host_file

    if not host_file().is_file():
        return None
    try:
        profile = read_profile(HOST)
    except OutzoomError:  # of another version
        return None
    return Roofs(profile.bandwidth_gb_per_s.value, {name: peak.value for name, peak in profile.peak_tops.items()})


def roofline_chart(results: Results, colours: Colours) -> Chart | None:
    """All engines whose work was counted; None if there is none."""
    points = list(_points(results))
    if not points:
        return None
    roofs = results.roofs

    def draw(axes: Any) -> None:
        if roofs is not None:
            across = np.geomspace(*INTENSITIES, 200)
            for index, (data_type, peak) in enumerate(roofs.peak_tops.items()):
                up = np.minimum(across * roofs.bandwidth_gb_per_s * 1e9, peak * 1e12) / 1e12
                axes.plot(across, up, color=COLOURS[index], linewidth=1.2, label=f"{data_type}, at most")
        for name, marker in MARKERS.items():
            axes.plot([], [], marker, color=TEXT, markersize=5, label=name.replace("_", " "))
        for bundle, component, intensity, tops in points:
            axes.plot(intensity, tops, MARKERS.get(component, "."), color=colours[bundle], markersize=5)
        axes.set(xscale="log", yscale="log")
        label_axes(axes, "operations per byte", "10¹² operations per second")
        axes.legend(fontsize=7, frameon=False, labelcolor=TEXT, loc="lower right")

    title = "Roofline"
    unets = "; ".join(
        f"{bundle}: {digits(intensity)} operations per byte, {digits(tops)} TOPS"
        for bundle, component, intensity, tops in points
        if component == "unet"
    )
    return Chart(title, draw_chart(draw, title, 3.6, WIDTH_INCHES), f"{title}, the UNet of each bundle. {unets}")


def _points(results: Results) -> Iterator[tuple[str, str, float, float]]:
    """Bundle, component, operations per byte, and 10^12 operations per second."""
    for bundle in results.bundles:
        for name, component in bundle.components.items():
            if component.work is not None and component.work.macs and component.latency.median_ms > 0:
                yield bundle.name, name, *_place(component, component.work)


def _place(component: ComponentResult, work: Work) -> tuple[float, float]:
    operations = 2 * work.macs
    return operations / work.moved_bytes, operations / component.latency.median_ms / 1e9
