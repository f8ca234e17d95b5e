"""Results as people read them in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .runtime import Bundle
from .terminal import out_console

if TYPE_CHECKING:
    from .benchmarks.compare import Change
    from .export import Estimate
    from .hardware import Profile, Survey
    from .runtime import Compiled, LiveStatus


def print_bundles(bundles: list[Bundle], seconds: float) -> None:
    """What a build made."""
    table = Table(title=f"{len(bundles)} bundles in {seconds:.1f} s", title_justify="left")
    for column in ("bundle", "size", "parity of the UNet", "lowest parity"):
        table.add_column(column, overflow="fold")
    for bundle in bundles:
        parities = {
            name: float("inf") if component.parity_psnr_db is None else component.parity_psnr_db
            for name, component in bundle.manifest.components.items()
        }
        worst = min(parities, key=lambda name: parities[name])
        row = (f"{parities['unet']:.1f} dB", f"{parities[worst]:.1f} dB ({worst})")
        table.add_row(str(bundle.path), _megabytes(bundle.size_bytes), *row)
    out_console.print(table)


def print_estimate(expected: Estimate) -> None:
    """What a build would take."""
    for name in expected.stages:
        out_console.print(name)
    out_console.print(
        f"{len(expected.stages)} stages to run, about {expected.seconds:.0f} s; "
        f"{_megabytes(expected.disk_bytes)} of disk while it builds, {_megabytes(expected.kept_bytes)} kept; "
        f"{_megabytes(expected.peak_memory_bytes)} of memory"
        if expected.stages
        else "everything is up to date"
    )


def print_components(bundle: Bundle) -> None:
    """What is in a bundle."""
    manifest = bundle.manifest
    sizes = ", ".join(f"{width}x{height}" for width, height in manifest.sizes)
    out_console.print(
        f"{bundle.path}: {manifest.target}, recipe {manifest.recipe.name}, {sizes}, "
        f"{_megabytes(bundle.size_bytes)}, from {manifest.source.name} ({manifest.source.sha256[:12]}); hashes match"
    )
    table = Table()
    table.add_column("component", no_wrap=True)
    for column in ("parameters", "bits each", "inputs", "outputs", "parity"):
        table.add_column(column, overflow="fold")
    for name, component in manifest.components.items():
        shapes = (
            "\n".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in specs)
            for specs in (component.inputs, component.outputs)
        )
        bits = f"{8 * bundle.component_size_bytes(name) / component.parameters:.1f}" if component.parameters else "-"
        on = f" (on {manifest.checked_on})" if manifest.checked_on else ""
        parity = "exact" if component.parity_psnr_db is None else f"{component.parity_psnr_db:.1f} dB{on}"
        table.add_row(name, f"{component.parameters:,}", bits, *shapes, parity)
    out_console.print(table)


def print_changes(changes: list[Change]) -> None:
    """What two results of a benchmark differ in."""
    table = Table(box=None, pad_edge=False)
    table.add_column("bundle", no_wrap=True)
    table.add_column("figure", no_wrap=True)
    for column in ("before", "after", "ratio", ""):
        table.add_column(column, justify="right", no_wrap=True)
    colours = {"better": "green", "worse": "red", "within noise": "dim"}
    for one in changes:
        figures = (f"{one.before:.6g}", f"{one.after:.6g}", f"{one.ratio:.3f}")
        table.add_row(one.bundle, one.figure, *figures, f"[{colours[one.verdict]}]{one.verdict}[/]")
    out_console.print(table)


def print_compiled(engines: list[Compiled], target: str) -> None:
    """What was compiled, or was there before."""
    table = Table(box=None, pad_edge=False)
    table.add_column("component", no_wrap=True)
    for column in ("size", "device", "", "open, s", "again, s", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in engines:
        table.add_row(
            one.component, "x".join(map(str, one.size)), one.device or target,
            "was there" if one.was_kept else "compiled",
            f"{one.open_seconds:.2f}", f"{one.again_seconds:.2f}", _megabytes(one.kept_bytes),
        )  # fmt: skip
    out_console.print(table)


def print_predictions(found: Survey, out: Path | None) -> None:
    """What a zoom would take on devices."""
    with_battery = any(one.battery_hours is not None for one in found.predictions)
    title = "modelled; energy and power of the processor and its DRAM alone"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device", no_wrap=True)
    for column in ("", "of", "1 in", "keyframe", "fps", "J/frame", "W", *["hours"] * with_battery, "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.predictions:
        unet = one.components.get("unet")
        table.add_row(
            one.device, "*" if one.is_pareto else "", one.label, str(one.keyframe_every),
            f"{one.keyframe_seconds:.3g} s",
            f"{one.frames_per_second:.3g}", f"{one.joules_per_frame:.3g}", f"{one.watts:.3g}",
            *([f"{one.battery_hours:.3g}"] if one.battery_hours is not None else []),
            unet.bottleneck if unet else "-",
        )  # fmt: skip
    out_console.print(table)
    out_console.print("limit: what most of a UNet pass waits for; *: no other is as fast for as little energy")
    for refusal in found.refusals:
        out_console.print(f"{refusal.device}, {refusal.label}: {refusal.reason}")
    if out is not None:
        out_console.print(f"{out / 'predict.html'}, {out / 'predict.json'}")


def print_devices(
    profiles: list[Profile], targets: dict[str, str], recipes: dict[str, dict[str, dict[str, Any]]]
) -> None:
    """The devices that are known, what can run here, and which recipes go for which target."""
    table = Table(box=None, pad_edge=False)
    table.add_column("device", no_wrap=True)
    for column in ("TOPS", "GB/s", "on chip, MB", "W", "unverified"):
        table.add_column(column, justify="right", overflow="fold")
    for profile in profiles:
        figures = profile.figures.values()
        doubtful = sum(figure.confidence == "unverified" for figure in figures)
        peaks = ", ".join(f"{name} {figure.value:.3g}" for name, figure in profile.peak_tops.items())
        numbers = (profile.bandwidth_gb_per_s, profile.on_chip_mb, profile.power_watts)
        row = (f"{figure.value:.3g}" for figure in numbers)
        table.add_row(profile.name, peaks, *row, f"{doubtful} of {len(figures)}")
    out_console.print(table)
    for target, state in targets.items():
        out_console.print(f"target {target} on this machine: {state}")
    print_recipes(recipes)


def print_recipes(recipes: dict[str, dict[str, dict[str, Any]]]) -> None:
    """For each target when its engines are made and which recipes it takes, and why it refuses the others."""
    table = Table(box=None, pad_edge=False)
    for column in ("target", "engines", "takes the recipes"):
        table.add_column(column, overflow="fold")
    for target, entries in recipes.items():
        taken = {recipe: entry["made"] for recipe, entry in entries.items() if entry["made"] != "refused"}
        table.add_row(target, " and ".join(sorted(set(taken.values()))), " ".join(taken) or "none")
    out_console.print(table)
    for target, entries in recipes.items():
        for reason in dict.fromkeys(entry["reason"] for entry in entries.values() if entry["reason"]):
            refused = ", ".join(recipe for recipe, entry in entries.items() if entry["reason"] == reason)
            out_console.print(f"{target} refuses {refused}: {reason}", markup=False)


def print_doctor(report: dict[str, Any]) -> None:
    """What is installed."""
    table = Table(title=f"outzoom {report['outzoom']}, Python {report['python']}", title_justify="left")
    for column in ("for", "package", "version"):
        table.add_column(column, overflow="fold")
    for extra, packages in report["packages"].items():
        for name, found in packages.items():
            table.add_row(extra, name, found or f"missing: pip install 'outzoom[{extra}]'")
    out_console.print(table)
    for target, state in report["targets"].items():
        out_console.print(f"target {target}: {state}")
    machine = report["machine"]
    out_console.print(
        f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['features']) or 'no features known'}; "
        f"{machine['memory_bytes'] / 2**30:.1f} GiB memory, {machine['disk_free_bytes'] / 2**30:.1f} GiB disk free"
    )


def print_zoom(result: dict[str, Any]) -> None:
    """What a zoom wrote."""
    out_console.print(
        f"{result['out']}: {result['frames']} frames, {result['keyframes_painted']} of them painted, "
        f"in {result['elapsed_seconds']} s"
    )


def print_live(status: LiveStatus) -> None:
    """What a live zoom did."""
    out_console.print(
        f"{status.frames_shown} frames in {status.elapsed_seconds:.1f} s, {status.frames_dropped} left out; "
        f"{status.keyframes_painted} keyframes painted, {status.keyframes_late} late"
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
