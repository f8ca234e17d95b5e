"""Predicts what the pipeline costs on devices that are not here: time, memory traffic and energy."""

from .bundles import bundle_workload, graph_workload, read_graph
from .costs import Cost, cost
from .full_size import RECIPES, full_size
from .pipeline import Prediction, Refusal, Survey, UseCase, component_costs, pareto_front, predict, survey
from .profiles import Profile, known_devices, parse_changes, read_profile, with_changes
from .workload import Layer, Workload, conv_fractions, macs_by_kind, with_floats

__all__ = [
    "RECIPES", "Cost", "Layer", "Prediction", "Profile", "Refusal", "Survey", "UseCase", "Workload", "bundle_workload",
    "component_costs", "conv_fractions", "cost", "full_size", "graph_workload", "known_devices", "macs_by_kind",
    "pareto_front", "parse_changes", "predict", "read_graph", "read_profile", "survey", "with_changes", "with_floats",
]  # fmt: skip
