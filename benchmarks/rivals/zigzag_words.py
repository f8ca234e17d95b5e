"""DRAM words of the layers of ZigZag's own ResNet-18, and of one convolution, as ZigZag counts them on its TPU.

    rivals/zigzag/bin/python benchmarks/rivals/zigzag_words.py --out words.json

Words are of 64 bits. Of each layer there are its loops as ZigZag reads them, the bytes of its operands, and the words
that DRAM reads and writes for each.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zigzag
from zigzag.api import get_hardware_performance_zigzag
from zigzag.mapping.data_movement import DataDirection

INPUTS = Path(zigzag.__file__).parent / "inputs"
HARDWARE, MAPPING = INPUTS / "hardware" / "tpu_like.yaml", INPUTS / "mapping" / "tpu_like.yaml"
CONVOLUTION = [
    {
        "id": 0,
        "name": "conv",
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": ["ix=1*ox+1*fx", "iy=1*oy+1*fy"],
        "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [1, 32, 16, 28, 28, 3, 3],
        "operand_precision": {"W": 8, "I": 8, "O": 16, "O_final": 8},
        "operand_source": {"I": 0, "W": 0},
    }
]


def words(workload: Any, opt: str) -> dict[str, Any]:
    """Run ZigZag on a workload."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        energy, latency, results = get_hardware_performance_zigzag(
            workload=workload, accelerator=str(HARDWARE), mapping=str(MAPPING), opt=opt, dump_folder=folder,
            pickle_filename=f"{folder}/all.pickle", loma_show_progress_bar=False,
        )  # fmt: skip
    return {
        "energy_picojoules": energy,
        "latency_cycles": latency,
        "seconds": round(time.monotonic() - started, 1),
        "layers": [_layer(found[0]) for found in results[0][1]],
    }


def _layer(found: Any) -> dict[str, Any]:
    """The operands by name: words read from DRAM for the chip, and written to it."""
    layer = found.layer
    moved = {}
    for operand, levels in found.memory_word_access.items():
        last = levels[-1]
        moved[str(operand)] = [last.data[DataDirection.RD_OUT_TO_LOW], last.data[DataDirection.WR_IN_BY_LOW]]
    return {
        "name": layer.name,
        "kind": layer.type,
        "loops": {str(dim): int(size) for dim, size in layer.layer_dim_sizes.data.items()},
        "elements": {str(op): int(size) for op, size in layer.operand_size_elem.items()},
        "bits": {str(op): int(bits) for op, bits in layer.operand_precision.data.items()},
        "words_read_written": moved,
    }


def main() -> None:
    """Write what ZigZag says of the convolution and of ResNet-18."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--opt", default="latency", choices=("latency", "energy", "EDP"), help="what it searches for")
    parser.add_argument("--only-convolution", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    result: dict[str, Any] = {
        "packages": {"zigzag-dse": version("zigzag-dse")}, "accelerator": HARDWARE.stem, "opt": args.opt,
    }  # fmt: skip
    result["convolution"] = words(CONVOLUTION, args.opt)
    if not args.only_convolution:
        result["resnet18"] = words(str(INPUTS / "workload" / "resnet18.onnx"), args.opt)
    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
