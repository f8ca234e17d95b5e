"""What `outzoom.benchmarks.qnn` measured, as a table for a page."""

from __future__ import annotations

from typing import Any

from .markdown import row
from .scripts import footnote

Entry = dict[str, Any]


def contexts(result: dict[str, Any]) -> str:
    """A row for each recipe and component: megabytes and seconds for each SoC, parity, and what is left to the CPU."""
    socs = sorted({entry["soc"] for entry in result["entries"]})
    emulated = dict.fromkeys(entry["soc"] for entry in result["entries"] if entry["emulated_cpu_seconds"] is not None)
    versions, cpu = result["packages"], result["machine"]["cpu_model"]
    elsewhere = dict.fromkeys(entry["emulated_on"] for entry in result["entries"] if entry.get("emulated_on"))
    lines = [
        f"`{result['model']}` at {result['size'][0]}x{result['size'][1]}, onnxruntime-qnn "
        f"{versions['onnxruntime-qnn']} with onnxruntime {versions['onnxruntime']} on {cpu}. Megabytes of the engine, "
        "and the CPU's seconds, of all threads, that making it took. Lowest PSNR of outputs in dB: of the emulated "
        f"{', '.join(emulated)} to the fp32 engine on inputs that zooms recorded, to PyTorch's module on the noise "
        "that builds are checked with, and that of the ONNX model on ONNX Runtime, as `bundle.json` says it."
        + (f" Emulated on {', '.join(elsewhere)}." if elsewhere else ""),
        "",
        f"| recipe | component | {' | '.join(f'{soc}, MB, s' for soc in socs)} | zoom, emulated | noise, emulated "
        f"| noise, ONNX Runtime | on the CPU | one run emulated, s |",
        "|" + "---|" * (7 + len(socs)),
    ]
    reasons: list[str] = []
    for recipe, component in dict.fromkeys((entry["recipe"], entry["component"]) for entry in result["entries"]):
        found = [entry for entry in result["entries"] if (entry["recipe"], entry["component"]) == (recipe, component)]
        cells = [recipe, component, *(_made(found, soc, reasons) for soc in socs), *_parities(found)]
        left: dict[str, int] = next((entry["operators_on_cpu"] for entry in found), {})
        seconds = next(
            (f"{entry['emulated_cpu_seconds']:.0f}" for entry in found if entry["emulated_cpu_seconds"]), "-"
        )
        cells += [", ".join(f"{count} {name}" for name, count in left.items()) or "-", seconds]
        lines.append(row(cells))
    lines += ["", *(f"[{number}] {reason}." for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines).rstrip()


def _made(found: list[Entry], soc: str, reasons: list[str]) -> str:
    """Size and time of a SoC's engine, or the number of why there is none."""
    entry = next((one for one in found if one["soc"] == soc), None)
    if entry is None:
        return "not tried"
    if entry["refused"]:
        return f"refused {footnote(entry['refused'], reasons)}"
    return f"{entry['engine_bytes'] / 1e6:.1f}, {entry['compile_cpu_seconds']:.0f}"


def _parities(found: list[Entry]) -> list[str]:
    """The lowest of those that were run."""
    ran = [entry for entry in found if entry["emulated_cpu_seconds"] is not None]
    if not ran:
        return ["not run"] * 3
    zoomed = [db for entry in ran for db in entry["zoom_psnr_db"]]
    rest = [[entry[key] for entry in ran] for key in ("probe_psnr_db", "graph_psnr_db")]
    return [f"{min(values):.1f}" for values in (zoomed, *rest)]
