"""Measuring bundles, comparing them, and the report page."""

from .bench import run_bench
from .process import measure_bundle
from .report import render_report, write_report
from .results import BundleResult, Results, read_results, results_as_dict, write_results
from .settings import BenchSettings

__all__ = [
    "BenchSettings",
    "BundleResult",
    "Results",
    "measure_bundle",
    "read_results",
    "render_report",
    "results_as_dict",
    "run_bench",
    "write_report",
    "write_results",
]
