"""Schedules and mappings of DRAM beside named baselines, on the networks that papers measure.

    python -m outzoom.benchmarks.memory --out RESULT.json [--plot docs/memory.png] [--zigzag WORDS.json]

Nothing is timed but the search; all else is the model's own and the same on every machine. WORDS.json comes from
benchmarks/rivals/zigzag_words.py.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..hardware.dram import MAPPINGS, DramCost, cost, total
from ..hardware.dram_profile import read_dram
from ..hardware.networks import NETWORKS, Network, sd2_unet
from ..hardware.schedule import LayerTraffic, traffic
from ..hardware.tiling import (
    INPUT_STATIONARY,
    ORDERS,
    OUTPUT_STATIONARY,
    WEIGHT_STATIONARY,
    Buffers,
    best_tiling,
    compulsory,
    equal_buffers,
    reuse_order,
    shared_buffer,
    traffic_of,
    uniform_tiling,
)  # fmt: skip
from ..hardware.workload import Layer
from ..runtime.files import atomic_file
from .machine import describe_machine
from .plots import COLOURS

COMMAND = "python -m outzoom.benchmarks.memory --out benchmarks/results/memory.json --plot docs/memory.png"
DRAM = "ddr3-1600"
COMPARED = ("alexnet", "vgg16", "mobilenet_v1", "unet")
BUFFER_KIB = 64  # of each of three, in the comparison of mappings
SWEEP_KIB = (16, 32, 64, 128, 256, 512, 1024)
SHUTTLE_KIB = (54, 108, 181.5, 216)
FULL_SIZE_KIB = (8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)

Strategy = Callable[[Network, Buffers], Sequence[LayerTraffic]]


def _each(orders: Callable[[Layer], Sequence[str]]) -> Strategy:
    """Every layer alone, in the best tiling of some loop orders."""

    def tiled(network: Network, buffers: Buffers) -> Sequence[LayerTraffic]:
        return [LayerTraffic(layer, *best_tiling(layer, buffers, orders(layer))) for layer in network.layers]

    return tiled


def _uniform(network: Network, buffers: Buffers) -> Sequence[LayerTraffic]:
    tilings = uniform_tiling(network.layers, buffers)
    return [
        LayerTraffic(layer, tile, traffic_of(layer, tile)) for layer, tile in zip(network.layers, tilings, strict=True)
    ]


STRATEGIES: dict[str, Strategy] = {
    "one tile size": _uniform,
    "weights stay": _each(lambda layer: WEIGHT_STATIONARY),
    "inputs stay": _each(lambda layer: INPUT_STATIONARY),
    "outputs stay": _each(lambda layer: OUTPUT_STATIONARY),
    "SmartShuttle-like": _each(lambda layer: OUTPUT_STATIONARY + WEIGHT_STATIONARY),
    "ROMANet's order": _each(lambda layer: (reuse_order(layer),)),
    "best of each layer": _each(lambda layer: ORDERS),
    "groups of layers": lambda network, buffers: traffic(network.layers, buffers, network.links).layers,
}


def bounds(network: Network) -> dict[str, Any]:
    """The least that layers move one by one, and that they move all together."""
    moved = [compulsory(layer) for layer in network.layers]
    each = sum(one.total_bytes for one in moved)
    together = moved[0].input_bytes + sum(one.weight_bytes for one in moved) + moved[-1].output_bytes
    return {"each_bytes": each, "together_bytes": together, "saving_fraction": round(1 - together / each, 4)}


def compare(network: Network, buffers: Buffers, strategy: str) -> dict[str, Any]:
    """Bytes of a strategy, and with each mapping energy, rows and time."""
    dram = read_dram(DRAM)
    layers = STRATEGIES[strategy](network, buffers)
    return {
        "bytes": sum(layer.traffic.total_bytes for layer in layers),
        "mappings": {mapping: _figures(total(cost(layers, dram, MAPPINGS[mapping]))) for mapping in MAPPINGS},
    }


def _figures(found: DramCost) -> dict[str, float]:
    values = {
        "access_millijoules": found.access_joules * 1e3,
        "energy_millijoules": found.energy_joules * 1e3,
        "row_hits": found.row_hits,
        "row_misses": found.row_misses,
        "row_conflicts": found.row_conflicts,
        "time_ms": found.time_s * 1e3,
        "stall_ms": found.stall_s * 1e3,
    }
    return {name: float(f"{value:.5g}") for name, value in values.items()}


def sweep(network: Network, strategy: str) -> list[float]:
    """Bytes of a strategy over sizes of three equal buffers."""
    tiled = (STRATEGIES[strategy](network, equal_buffers(kib << 10)) for kib in SWEEP_KIB)
    return [sum(layer.traffic.total_bytes for layer in layers) for layers in tiled]


def accesses(name: str, pictures: int) -> list[float]:
    """Multiply-accumulates for each 16-bit word that crosses the bus, over sizes of one shared buffer."""
    layers = NETWORKS[name]().convolutions().at_bits(16).layers
    macs = pictures * sum(layer.macs for layer in layers)
    found = []
    for kib in SHUTTLE_KIB:
        moved = (best_tiling(layer, shared_buffer(int(kib * 1024)), pictures=pictures)[1] for layer in layers)
        found.append(round(macs / (sum(one.total_bytes for one in moved) / 2), 1))
    return found


def full_size() -> dict[str, Any]:
    """How long tiling every layer of the full-size UNet takes, for sizes that were not seen before."""
    layers = sd2_unet()
    started = time.perf_counter()
    moved = [traffic(layers, equal_buffers(kib << 10)).total.total_bytes for kib in FULL_SIZE_KIB]
    return {
        "layers": len(layers),
        "buffer_kib": FULL_SIZE_KIB,
        "gigabytes": [round(each / 1e9, 3) for each in moved],
        "compulsory_gigabytes": round(sum(compulsory(layer).total_bytes for layer in layers) / 1e9, 3),
        "seconds": round(time.perf_counter() - started, 2),
    }


def beside_zigzag(words: dict[str, Any]) -> dict[str, Any]:
    """Our words of 64 bits beside ZigZag's, of the same layers with its memory: 2 MB for inputs and outputs together.

    Weights stream through registers there, so that they need none of it; ours have a buffer as large as they are.
    """
    found = []
    for theirs in (*words["convolution"]["layers"], *words.get("resnet18", {}).get("layers", ())):
        layer = _from_zigzag(theirs)
        if layer is None:
            continue
        moved = traffic((layer,), shared_buffer((2 << 20) + layer.weight_bytes)).total
        least = compulsory(layer)
        found.append(
            {
                "name": layer.name,
                "ours": [moved.weight_bytes / 8, moved.input_bytes / 8, moved.write_bytes / 8],
                "compulsory": [least.weight_bytes / 8, least.input_bytes / 8, least.output_bytes / 8],
                "zigzag": [theirs["words_read_written"][name][at] for name, at in (("W", 0), ("I", 0), ("O", 1))],
            }
        )
    return {key: words[key] for key in ("packages", "accelerator", "opt")} | {"layers": found}


def _from_zigzag(theirs: dict[str, Any]) -> Layer | None:
    """A convolution or linear layer; None for the others. The stride follows from the sides of input and output."""
    loops, bits, elements = theirs["loops"], theirs["bits"], theirs["elements"]
    if not {"W", "I"} <= elements.keys():
        return None
    channels, side = loops.get("C", 1), loops.get("OX", 1)
    input_side = math.isqrt(elements["I"] // channels)
    return Layer(
        theirs["name"], "conv", 1, loops.get("K", 1), channels, loops.get("OY", 1), side, loops.get("FY", 1),
        loops.get("FX", 1), max(round(input_side / side), 1), 1, bits["I"], bits["W"],
        bits.get("O_final", bits["O"]), input_side, input_side,
    )  # fmt: skip


def savings(result: dict[str, Any]) -> dict[str, Any]:
    """Of ours against each baseline in row-major order: bytes, and energy with ROMANet's mapping."""
    found: dict[str, Any] = {}
    for network, strategies in result.get("networks", {}).items():
        if strategies.keys() == STRATEGIES.keys():
            best, groups = strategies["best of each layer"], strategies["groups of layers"]
            found[network] = {
                name: {
                    "bytes_by_groups": _saved(groups["bytes"], each["bytes"]),
                    "energy_by_groups": _saved(_millijoules(groups, "romanet"), _millijoules(each, "row-major")),
                    "energy_by_groups_alone": _saved(_millijoules(groups, "romanet"), _millijoules(each, "romanet")),
                    "time_by_groups_alone": _saved(
                        groups["mappings"]["romanet"]["time_ms"], each["mappings"]["romanet"]["time_ms"]
                    ),
                    "energy_by_tiling_and_mapping": _saved(
                        _millijoules(best, "romanet"), _millijoules(each, "row-major")
                    ),
                    "energy_by_mapping_alone": _saved(_millijoules(each, "romanet"), _millijoules(each, "row-major")),
                }
                for name, each in strategies.items()
            }
    return found


def _millijoules(strategy: dict[str, Any], mapping: str) -> float:
    found: float = strategy["mappings"][mapping]["access_millijoules"]
    return found


def _saved(ours: float, theirs: float) -> float:
    return round(1 - ours / theirs, 4)


def parts(words: dict[str, Any] | None = None) -> dict[tuple[str, ...], Callable[[], Any]]:
    """The parts of the result file, by where they are in it."""
    networks = [NETWORKS[name]() for name in COMPARED]
    convolutions = [network.convolutions() for network in networks]
    whole = networks[0]
    compared = [*convolutions, Network(f"{whole.name} with linear layers", whole.layers, whole.links)]
    buffers = equal_buffers(BUFFER_KIB << 10)
    found: dict[tuple[str, ...], Callable[[], Any]] = {("full_size",): full_size}
    found |= {("bounds", each.name): partial(bounds, each) for each in convolutions}
    for name in STRATEGIES:
        found |= {("networks", each.name, name): partial(compare, each, buffers, name) for each in compared}
        found |= {("sweep", each.name, name): partial(sweep, each, name) for each in convolutions}
    found[("macs_per_access",)] = lambda: {
        "buffer_kib": SHUTTLE_KIB, "AlexNet, batch 4": accesses("alexnet", 4), "VGG-16, batch 3": accesses("vgg16", 3),
    }  # fmt: skip
    if words is not None:
        found[("zigzag",)] = partial(beside_zigzag, words)
    return found


def measure(file: Path, words: dict[str, Any] | None = None, only: Sequence[str] = ("*",)) -> dict[str, Any]:
    """Make the parts of the result file whose names match, as "sweep/UNet"; the others stay as they are."""
    result: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    result |= {
        "command": COMMAND, "outzoom_version": __version__, "machine": describe_machine().cpu_model,
        "method": "modelled", "dram": read_dram(DRAM).name, "buffer_kib": BUFFER_KIB, "sweep_kib": SWEEP_KIB,
    }  # fmt: skip
    for place, make in parts(words).items():
        if any(fnmatchcase("/".join(place), pattern) for pattern in only):
            within = result
            for name in place[:-1]:
                within = within.setdefault(name, {})
            within[place[-1]] = make()
    result["savings"] = savings(result)
    with atomic_file(file) as unfinished:
        unfinished.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """Bytes over the size of the buffers, a panel for each network."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, panels = plt.subplots(1, len(result["sweep"]), figsize=(12, 3.8), layout="constrained")
    kib = np.array(result["sweep_kib"])
    shown = [name for name in STRATEGIES if name not in ("outputs stay", "SmartShuttle-like")]  # on the best of each
    for panel, (network, lines) in zip(panels, result["sweep"].items(), strict=True):
        bound = result["bounds"][network]
        for name, colour in zip(shown, COLOURS, strict=False):
            wide = 2.4 if name == "groups of layers" else 1.2
            panel.plot(
                kib, np.array(lines[name]) / 1e6, marker="o", markersize=3, linewidth=wide, label=name, color=colour
            )
        panel.axhline(bound["each_bytes"] / 1e6, color="grey", linestyle="--", linewidth=1)
        panel.axhline(bound["together_bytes"] / 1e6, color="grey", linestyle=":", linewidth=1)
        panel.set(title=network, xscale="log", yscale="log", xlabel="KiB of each of three buffers")
        panel.set_xticks(kib, [str(each) for each in kib])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("MB to and from DRAM")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown), fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write the result, and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--zigzag", type=Path, help="what benchmarks/rivals/zigzag_words.py wrote")
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of parts such as 'sweep/*'; others stay")
    args = parser.parse_args()
    words = json.loads(args.zigzag.read_text("utf-8")) if args.zigzag else None
    measure(args.out, words, args.only)
    if args.plot:
        plot(json.loads(args.out.read_text("utf-8")), args.plot)


if __name__ == "__main__":
    main()
