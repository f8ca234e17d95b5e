"""Write the layers of a checkpoint's four models, traced from its configuration alone.

python models/make_workload.py CHECKPOINT --out hardware/workloads/sd2-inpainting-512.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from outzoom.export import Shapes, open_checkpoint
from outzoom.export.components import COMPONENT_SPECS
from outzoom.export.trace import save_skeleton, trace
from outzoom.hardware import Workload, graph_workload
from outzoom.hardware.full_size import write_workload


def main() -> None:
    """Trace, read the graphs, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--name", default="stable-diffusion-2-inpainting")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.checkpoint)
    side = checkpoint.native_side
    components = {}
    for component in COMPONENT_SPECS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            save_skeleton(trace(checkpoint, component, Shapes(((side, side),), 1)), file)
            components |= graph_workload(file, component).components
    write_workload(Workload(given.name, "fp32", side, side, components), given.out)


if __name__ == "__main__":
    main()
