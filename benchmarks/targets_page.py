"""What is built for which target, and how long engines take to open, as tables for the pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from .markdown import row
from .scripts import footnote


def targets(result: dict[str, Any]) -> str:
    """Which recipe goes for which target, and what becomes of each component; from outzoom.benchmarks.targets."""
    entries = {(entry["target"], entry["recipe"]): entry for entry in result["entries"]}
    names, recipes = (list(dict.fromkeys(key[index] for key in entries)) for index in (0, 1))
    machine, timed = result["machine"], any(entry["cpu_seconds"] is not None for entry in entries.values())
    reasons: list[str] = []
    lines = [
        f"`{result['checkpoint']}`, every bundle built on {machine['cpu_model']}, {machine['usable_cores']} cores; "
        "megabytes on disk, the lowest parity of a component in dB"
        f"{', and the seconds of one core that building it takes, from the checkpoint on' if timed else ''}:",
        "",
        row(["target", "engines", *recipes]),
        "|" + "---|" * (len(recipes) + 2),
    ]
    for name in names:
        made = next(entry["made"] for (target, _), entry in entries.items() if target == name)
        cells = [_target_cell(entries.get((name, recipe)), reasons) for recipe in recipes]
        lines.append(row([f"`{name}`", made, *cells]))
    lines += ["", *(f"[{number}] {reason}." for number, reason in enumerate(reasons, 1))]
    checked: dict[str, list[str]] = {}
    for (name, _), entry in entries.items():
        if entry["checked_on"] and name not in checked.setdefault(entry["checked_on"], []):
            checked[entry["checked_on"]].append(name)
    for on, those in checked.items():
        lines += ["", f"The parity of {', '.join(f'`{name}`' for name in those)} was measured on engines of `{on}`."]
    built = {name for (name, _), entry in entries.items() if entry["components"]}
    away = {name: reason for name, reason in result["absent"].items() if reason and name in built}
    lines += ["", *(f"- Built, not run, `{name}`: {reason}." for name, reason in away.items())]
    return "\n".join([*lines, "", *_component_table(entries, names, recipes)])


def _target_cell(entry: dict[str, Any] | None, reasons: list[str]) -> str:
    if entry is None:
        return "not tried"
    if entry["refused"]:
        return f"refused {footnote(entry['refused'], reasons)}"
    parts = entry["components"].values()
    size_mb = sum(part["size_bytes"] for part in parts) / 1e6
    seconds = f", {entry['cpu_seconds']:.0f} s" if entry["cpu_seconds"] is not None else ""
    return f"{size_mb:.1f} MB, {_least_db(list(parts))}{seconds}"


def _least_db(parts: list[dict[str, Any]]) -> str:
    parities = [part["parity_psnr_db"] for part in parts if part["parity_psnr_db"] is not None]
    return f"{min(parities):.0f} dB" if parities else "equal"


def _component_table(entries: dict[tuple[str, str], dict[str, Any]], names: list[str], recipes: list[str]) -> list[str]:
    """Size and parity of each component by itself, folded away: it has a row for each target and component."""
    components = list(dict.fromkeys(name for entry in entries.values() for name in entry["components"]))
    lines = [
        "<details><summary>Each component by itself: megabytes and parity</summary>", "",
        row(["target", "component", *recipes]), "|" + "---|" * (len(recipes) + 2),
    ]  # fmt: skip
    for name in names:
        for component in components:
            parts = [entries.get((name, recipe), {}).get("components", {}).get(component) for recipe in recipes]
            cells = [f"{part['size_bytes'] / 1e6:.1f}, {_least_db([part])}" if part else "" for part in parts]
            lines.append(row([f"`{name}`", component, *cells]))
    return [*lines, "", "</details>"]


def opening(result: dict[str, Any]) -> str:
    """How long engines take to open, cold and warm; from outzoom.benchmarks.opening."""
    machine = result["machine"]
    components = list(dict.fromkeys(name for bundle in result["bundles"] for name in bundle["components"]))
    rounds = len(result["bundles"][0]["components"]["unet"]["cold_seconds"])
    lines = [
        f"`{result['checkpoint']}` at {result['size'][0]}x{result['size'][1]}; {machine['cpu_model']}, "
        f"{machine['usable_cores']} cores, load average {machine['load_average_1min']:.1f} before; seconds cold, then "
        f"warm, {'in one process' if rounds == 1 else f'medians of {rounds} processes'} with an empty cache:",
        "",
        row(["bundle", *components, "kept, MB"]),
        "|" + "---|" * (len(components) + 2),
    ]
    for bundle in result["bundles"]:
        opened = bundle["components"]
        cells = [_cold_and_warm(opened[name]) if name in opened else "" for name in components]
        kept_mb = sum(one["kept_bytes"] for one in opened.values()) / 1e6
        lines.append(row([bundle["name"], *cells, f"{kept_mb:.0f}"]))
    return "\n".join(lines)


def _cold_and_warm(opened: dict[str, Any]) -> str:
    return ", ".join(f"{np.median(opened[kind]):.2f}" for kind in ("cold_seconds", "warm_seconds"))


def tensorrt(result: dict[str, Any]) -> str:
    """Which engines TensorRT's builder takes; from outzoom.benchmarks.tensorrt_engines."""
    entries = result["entries"]
    capabilities, names, components = (
        list(dict.fromkeys(entry[key] for entry in entries)) for key in ("capability", "name", "component")
    )
    built = {entry["capability"] for entry in entries if not entry["refused"]}
    whole = [one for one in capabilities if one not in built and _capability_refusal(entries, one)]
    asked = [one for one in capabilities if one not in whole]
    lines = [
        f"`{result['model']}`, built by {result['package']} {result['version']} for compute capability "
        f"{', '.join(asked)}, each by itself; megabytes of the ONNX model with its weights, and of the engine for "
        f"{asked[0]}:",
        "",
        row(["bundle", *components]),
        "|" + "---|" * (len(components) + 1),
    ]
    reasons: list[str] = []
    for name in names:
        cells = [name]
        for component in components:
            found = [
                e for e in entries if (e["name"], e["component"]) == (name, component) and e["capability"] in asked
            ]
            cells.append(_engine_cell(found, reasons))
        lines.append(row(cells))
    lines += ["", *(f"[{number}] {reason}." for number, reason in enumerate(reasons, 1))]
    lines += ["", *(f"{_capability_refusal(entries, one)}." for one in whole)]
    return "\n".join(lines).rstrip()


def _capability_refusal(entries: list[dict[str, Any]], capability: str) -> str:
    """Why nothing is built for a capability, or nothing if it was the graphs' fault."""
    refusals = (str(entry["refused"] or "") for entry in entries if entry["capability"] == capability)
    return next((refusal for refusal in refusals if "compute capability" in refusal), "")


def _engine_cell(found: list[dict[str, Any]], reasons: list[str]) -> str:
    """One engine for all capabilities that it was built for, and why not for others."""
    if not found:
        return ""
    built = [entry for entry in found if not entry["refused"]]
    cell = f"{built[0]['onnx_bytes'] / 1e6:.1f}, {built[0]['engine_bytes'] / 1e6:.1f}" if built else ""
    for entry in found:
        if entry["refused"]:
            mark = f"refused {footnote(entry['refused'].rstrip('.'), reasons)}"
            cell = mark if not built else f"{cell}; {entry['capability']} {mark}"
            if not built:
                break
    return cell
