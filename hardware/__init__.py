"""Predicts what the pipeline costs on devices that are not here: time, memory traffic and energy."""

from .bundles import bundle_workload, graph_workload, read_graph
from .workload import Layer, Workload, conv_fractions, macs_by_kind, with_floats

__all__ = [
    "Layer", "Workload", "bundle_workload", "conv_fractions", "graph_workload", "macs_by_kind", "read_graph",
    "with_floats",
]  # fmt: skip
