"""The report: one HTML page that needs nothing beside it, its plots and pictures inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.files import atomic_file
from .beside import beside
from .memory_chart import memory_charts
from .pages import render
from .plots import COLOURS, Bar, bar_chart
from .report_parts import Chart, digits, first_border_psnr_db, mb, seconds, similarity, smaller
from .results import BundleResult, Executed, Latency, Results
from .roofline import roofline_chart
from .settings import MIN_RUNS
from .trade_offs import trade_off_charts

if TYPE_CHECKING:
    pass

TEMPLATE = "report.html"
BUSY_CPU_FRACTION = 0.1
COMPONENT_LABELS = {
    "text_encoder": "Text encoder",
    "unet_text": "UNet, hoisted: once per prompt",
    "unet_time": "UNet, hoisted: once per timestep",
    "unet": "UNet, one pass",
    "unet_shallow": "UNet, shallow: steps between whole ones",
    "vae_encoder": "VAE encoder",
    "vae_decoder": "VAE decoder",
}

Strips = Mapping[str, NDArray[np.uint8]]  # by bundle; uint8 RGB (frames, height, width, 3)
Loops = Mapping[str, str]  # by bundle; data URIs of its zoom


@dataclass(frozen=True)
class Finding:
    """A headline of the summary."""

    title: str
    value: str
    bundle: str
    remark: str


@dataclass(frozen=True)
class ExecutedRow:
    """What the engine of a bundle's component computes in, and its time over that of the fp16 bundle."""

    bundle: str
    component: str
    executed: Executed
    ratio: float | None


def write_report(results: Results, strips: Strips, path: Path, loops: Loops = MappingProxyType({})) -> None:
    """Write the page, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(render_report(results, strips, loops), "utf-8")


def render_report(results: Results, strips: Strips, loops: Loops = MappingProxyType({})) -> str:
    """The page as HTML. Names and texts from bundles and the command line are escaped."""
    filters: dict[str, Callable[..., Any]] = {
        "digits": digits, "mb": mb, "seconds": seconds, "similarity": similarity, "webp": webp_data_uri,
    }  # fmt: skip
    settings, labels = results.settings, _component_labels(results)
    colours = dict(zip((bundle.name for bundle in results.bundles), _colours(results), strict=True))
    return render(
        TEMPLATE,
        filters,
        results=results,
        settings=settings,
        machine=results.machine,
        warnings=_warnings(results),
        findings=_findings(results.bundles),
        colours=colours,
        trade_offs=trade_off_charts(results.bundles, colours),
        roofline=roofline_chart(results, colours),
        memory_charts=memory_charts(results.bundles, colours),
        references={bundle.name: bundle for bundle in results.bundles},
        component_labels=labels,
        executed=_executed(results, labels),
        beside=beside(results.beside) if results.beside else None,
        component_charts=[_component_chart(results, name, label) for name, label in labels.items()],
        charts=_bundle_charts(results),
        strips=strips,
        loops=loops,
        min_runs=MIN_RUNS,
        passes=settings.painting.steps * (2 if settings.painting.guidance > 1 else 1),
    )


def webp_data_uri(picture: NDArray[np.uint8]) -> str:
    """A picture (height, width, 3) as a data URI: WebP, without loss unless it is one that has to be shown smaller."""
    from PIL import Image

    shown, buffer = smaller(picture), io.BytesIO()
    Image.fromarray(shown).save(buffer, "WEBP", lossless=shown.shape == picture.shape, quality=90, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _colours(results: Results) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(results.bundles))]


def _warnings(results: Results) -> list[str]:
    found = [results.machine.warning] if results.machine.warning else []
    busy = [each for each in results.bundles if each.other_cpu_fraction > BUSY_CPU_FRACTION]
    if busy:
        shares = ", ".join(f"{bundle.other_cpu_fraction:.0%} ({bundle.name})" for bundle in busy)
        found.append(f"Other processes took CPU time from the machine while it measured: {shares}.")
    return found + [f"{bundle.name}: {warning}" for bundle in results.bundles for warning in bundle.warnings]


def _findings(bundles: Sequence[BundleResult]) -> list[Finding]:
    """What a reader wants to know first, and no winner where the measurement does not tell one."""
    quickest = sorted(bundles, key=lambda bundle: bundle.zoom.keyframe.median_ms)
    smallest = min(bundles, key=lambda bundle: bundle.size_bytes)
    leanest = min(bundles, key=lambda bundle: bundle.memory.peak_rss_bytes)
    keyframe = quickest[0].zoom.keyframe
    smoothest = max(bundles, key=lambda bundle: bundle.zoom.frames_per_second)
    findings = [
        Finding("Fastest keyframe", f"{seconds(keyframe.median_ms)} s", quickest[0].name, _speed_remark(quickest)),
        Finding(
            "Most frames, end to end",
            f"{digits(smoothest.zoom.frames_per_second)} per s",
            smoothest.name,
            f"{digits(smoothest.zoom.frames_per_second_with_open)} with start and loading counted in",
        ),
        Finding("Smallest on disk", f"{mb(smallest.size_bytes)} MB", smallest.name, ""),
        Finding("Least peak memory", f"{mb(leanest.memory.peak_rss_bytes)} MB", leanest.name, ""),
    ]
    thrifty = min((bundle for bundle in bundles if bundle.energy), key=_keyframe_joules, default=None)
    if thrifty is not None and thrifty.energy is not None:
        joules = f"{digits(thrifty.energy.keyframe_joules)} J"
        findings.append(Finding("Least energy per keyframe", joules, thrifty.name, thrifty.energy.method))
    compared = [bundle for bundle in bundles if bundle.quality and bundle.recipe != "fp32"]
    if compared:
        nearest = max(compared, key=first_border_psnr_db)
        value = first_border_psnr_db(nearest)
        text = f"{value:.1f} dB" if math.isfinite(value) else "identical"
        findings.append(Finding("Nearest to fp32", text, nearest.name, "border PSNR of the first keyframe"))
    return findings


def _keyframe_joules(bundle: BundleResult) -> float:
    return bundle.energy.keyframe_joules if bundle.energy else math.nan


def _speed_remark(quickest: Sequence[BundleResult]) -> str:
    first, *others = quickest
    even = [other.name for other in others if other.zoom.keyframe.overlaps(first.zoom.keyframe)]
    if even:
        return f"not told apart from {', '.join(even)}: the ranges p10 to p90 overlap"
    if not others:
        return ""
    ratio = others[0].zoom.keyframe.median_ms / first.zoom.keyframe.median_ms
    return f"{ratio:.2f} times as fast as the next, {others[0].name}"


def _executed(results: Results, components: Iterable[str]) -> dict[str, list[ExecutedRow]]:
    """For each component, what the engines of the bundles that tell it compute in."""
    rows: dict[str, list[ExecutedRow]] = {}
    for component in components:
        for bundle in results.bundles:
            found = bundle.components.get(component)
            if found is not None and found.executed is not None:
                row = ExecutedRow(bundle.name, component, found.executed, _ratio_to_fp16(bundle, component, results))
                rows.setdefault(component, []).append(row)
    return rows


def _ratio_to_fp16(bundle: BundleResult, component: str, results: Results) -> float | None:
    """A component's median time over that of the fp16 bundle of the same target, checkpoint and size."""

    def kind(one: BundleResult) -> tuple[object, ...]:
        return one.target, one.source_sha256, one.width, one.height

    for other in results.bundles:
        if other.recipe == "fp16" and kind(other) == kind(bundle) and component in other.components:
            theirs = other.components[component].latency.median_ms
            return bundle.components[component].latency.median_ms / theirs
    return None


def _component_labels(results: Results) -> dict[str, str]:
    """What to call the components of all bundles, in the order of the bundle that has the most."""
    bundles = sorted(results.bundles, key=lambda bundle: len(bundle.components), reverse=True)
    return {name: COMPONENT_LABELS.get(name, name) for bundle in bundles for name in bundle.components}


def _component_chart(results: Results, component: str, label: str) -> Chart:
    def latency(bundle: BundleResult) -> Latency | None:
        found = bundle.components.get(component)
        return found.latency if found else None

    return _latency_chart(results, label, latency, "ms", 1.0)


def _bundle_charts(results: Results) -> list[Chart]:
    charts = [
        _latency_chart(results, "Time per keyframe", lambda bundle: bundle.zoom.keyframe, "s", 1e-3),
        _chart(results, "Cold open", lambda bundle: bundle.open.from_process_start_ms / 1e3, "s"),
        _chart(results, "Peak memory", lambda bundle: bundle.memory.peak_rss_bytes / 1e6, "MB"),
        _chart(results, "Size on disk", lambda bundle: bundle.size_bytes / 1e6, "MB"),
        _chart(results, "Zoom, end to end", lambda bundle: bundle.zoom.frames_per_second, "frames/s"),
    ]
    if energies := [bundle.energy for bundle in results.bundles if bundle.energy]:
        how = "measured" if energies[0].is_measured else "modelled"
        charts.append(_chart(results, f"Energy per keyframe, {how}", _keyframe_joules, "J"))
    compared = [bundle for bundle in results.bundles if math.isfinite(first_border_psnr_db(bundle))]
    if compared:
        charts.append(_chart(results, "Border PSNR against fp32", first_border_psnr_db, "dB"))
    return charts


def _chart(results: Results, title: str, value: Callable[[BundleResult], float], unit: str) -> Chart:
    pairs = zip(results.bundles, _colours(results), strict=True)
    bars = [
        Bar(bundle.name, value(bundle), f"{digits(value(bundle))} {unit}", colour)
        for bundle, colour in pairs
        if math.isfinite(value(bundle))
    ]
    return _as_chart(title, bars)


def _latency_chart(
    results: Results, title: str, latency: Callable[[BundleResult], Latency | None], unit: str, scale: float
) -> Chart:
    bars = []
    for bundle, colour in zip(results.bundles, _colours(results), strict=True):
        if (found := latency(bundle)) is None:
            continue
        median, low, high = (ms * scale for ms in (found.median_ms, found.p10_ms, found.p90_ms))
        bars.append(Bar(bundle.name, median, f"{digits(median)} {unit}", colour, low, high))
    return _as_chart(title, bars)


def _as_chart(title: str, bars: Sequence[Bar]) -> Chart:
    values = "; ".join(f"{bar.label}: {bar.text}" for bar in bars)
    return Chart(title, bar_chart(bars, title), f"{title}. {values}")
