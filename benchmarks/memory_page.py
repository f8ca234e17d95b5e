"""The tables of docs/memory.md, made from benchmarks/results/memory.json."""

from __future__ import annotations

from typing import Any

OURS = "groups of layers"
PROTOTYPE_MILLIJOULES = {  # of a first, separate prototype: row-major, by tiles
    "AlexNet": (0.460, 0.456),
    "AlexNet with linear layers": (16.525, 8.089),
    "VGG-16": (9.013, 8.088),
    "MobileNetV1": (1.927, 1.871),
}


def strategies(result: dict[str, Any]) -> str:
    """Bytes of each strategy, and the savings of groups of layers against it."""
    networks = [name for name in result["networks"] if name in result["bounds"]]
    lines = [
        f"Convolutions in 8 bits, batch 1, three buffers of {result['buffer_kib']} KiB; MB to and from DRAM, and in "
        "brackets what groups of layers save of them:",
        "",
        "| | " + " | ".join(networks) + " |",
        "|---|" + "---|" * len(networks),
    ]
    for name in result["networks"][networks[0]]:
        cells = []
        for network in networks:
            moved = result["networks"][network][name]["bytes"]
            saved = result["savings"][network][name]["bytes_by_groups"]
            cells.append(f"{moved / 1e6:.2f}" + (f" ({saved:.0%})" if name != OURS else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for label, key in (("*bound, layer by layer*", "each_bytes"), ("*bound, all layers together*", "together_bytes")):
        cells = [f"{result['bounds'][network][key] / 1e6:.2f}" for network in networks]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mappings(result: dict[str, Any]) -> str:
    """Energy, rows and time of the mappings, with the best tiling of each layer."""
    lines = [
        f"Best tiling of each layer, {result['dram']}, energy of opening rows, reading and writing; rows opened; time:",
        "",
        "| | row-major | bank by bank | by tiles | ROMANet's | saved by the mapping | first prototype |",
        "|---|---|---|---|---|---|---|",
    ]
    names = ("row-major", "row-major, bank by bank", "by tiles", "romanet")
    for network, found in result["networks"].items():
        figures = [found["best of each layer"]["mappings"][name] for name in names]
        cells = [
            f"{one['access_millijoules']:.3f} mJ, {(one['row_misses'] + one['row_conflicts']) / 1e3:,.1f}k, "
            f"{one['time_ms']:.2f} ms"
            for one in figures
        ]
        energy, time = (1 - figures[3][key] / figures[0][key] for key in ("access_millijoules", "time_ms"))
        known = PROTOTYPE_MILLIJOULES.get(network)
        cells.append(f"{energy:.1%} of energy, {time:.1%} of time")
        cells.append(f"{known[0]:.3f} to {known[1]:.3f} mJ" if known else "")
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def papers(result: dict[str, Any]) -> str:
    """Both papers' savings beside ours, against each baseline in rows."""
    networks = [name for name in result["networks"] if name in result["bounds"]]
    romanet = {"AlexNet": "12%", "VGG-16": "36%", "MobileNetV1": "46%"}
    lines = [
        "Energy saved against each baseline in row-major order: by the best tiling of each layer with ROMANet's "
        "mapping, and by groups of layers with it:",
        "",
        "| baseline | " + " | ".join(networks) + " |",
        "|---|" + "---|" * len(networks),
    ]
    for name in (name for name in result["savings"][networks[0]] if name != OURS):
        cells = [result["savings"][network][name] for network in networks]
        shown = [f"{one['energy_by_tiling_and_mapping']:.0%}, {one['energy_by_groups']:.0%}" for one in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines.append(
        "| *ROMANet, against the state of the art of its time* | "
        + " | ".join(romanet.get(n, "") for n in networks)
        + " |"
    )
    lines += [
        "",
        f"Bytes that groups of layers save, over buffers of three times {result['sweep_kib'][0]} to "
        f"{result['sweep_kib'][-1]} KiB, least to most:",
        "",
        "| baseline | " + " | ".join(networks) + " |",
        "|---|" + "---|" * len(networks),
    ]
    for name in result["sweep"][networks[0]]:
        if name != OURS:
            shown = []
            for network in networks:
                pairs = zip(result["sweep"][network][OURS], result["sweep"][network][name], strict=True)
                saved = [1 - ours / theirs for ours, theirs in pairs]
                shown.append(f"{min(saved):.0%} to {max(saved):.0%}")
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines.append(
        "| *Zheng et al., UNet, VGG-16 and MobileNet, against previous works* |"
        + " 34% to 93% |"
        + " |" * (len(networks) - 1)
    )
    return "\n".join(lines)


def zigzag(result: dict[str, Any]) -> str:
    """Words of DRAM beside ZigZag's."""
    found = result.get("zigzag")
    if found is None:
        return "Not measured yet."
    layers = found["layers"]
    equal = [layer for layer in layers if layer["ours"] == layer["zigzag"]]
    sums = {key: sum(sum(layer[key]) for layer in layers) for key in ("ours", "zigzag", "compulsory")}
    lines = [
        f"Words of 64 bits for weights, inputs and outputs of one convolution and of ResNet-18; zigzag-dse "
        f"{found['packages']['zigzag-dse']}, `{found['accelerator']}`, searched for {found['opt']}:",
        "",
        "| layer | ours | ZigZag's | compulsory |",
        "|---|---|---|---|",
    ]
    for layer in [layers[0], *(layer for layer in layers[1:] if layer not in equal)]:
        cells = (" / ".join(f"{count:,.0f}" for count in layer[key]) for key in ("ours", "zigzag", "compulsory"))
        lines.append(f"| {layer['name']} | " + " | ".join(cells) + " |")
    lines.append(f"| *all {len(layers)}* | " + " | ".join(f"{sums[key]:,.0f}" for key in sums) + " |")
    return "\n".join([*lines, "", f"The three numbers are equal in {len(equal)} of {len(layers)} layers."])


def speed(result: dict[str, Any]) -> str:
    """How long the search takes at full size."""
    found, shuttle = result["full_size"], result["macs_per_access"]
    shown = {
        name: ", ".join(f"{value:.0f}" for value in values) for name, values in shuttle.items() if name != "buffer_kib"
    }
    sizes = ", ".join(f"{size:g}" for size in shuttle["buffer_kib"])
    return "\n".join(
        [
            f"The best tiling of all {found['layers']} layers of Stable Diffusion 2's UNet at 64x64, for "
            f"{len(found['buffer_kib'])} sizes of buffers, is found in {found['seconds']:.1f} s "
            f"({result['machine']}, beside other work): {found['gigabytes'][0]:.1f} GB a step with three buffers of "
            f"{found['buffer_kib'][0]} KiB, {found['gigabytes'][-1]:.2f} with {found['buffer_kib'][-1]}, at least "
            f"{found['compulsory_gigabytes']:.2f}.",
            "",
            f"Multiply-accumulates for each 16-bit word, one buffer of {sizes} KiB: "
            + "; ".join(f"{name} {values}" for name, values in shown.items())
            + ".",
        ]
    )
