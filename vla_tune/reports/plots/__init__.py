"""The report's plots, as SVG that takes its ink from the page and so is legible on light and on dark."""

from vla_tune.reports.plots.continual import agreement, layer_order, matrix_map, router_map, short_names, streams
from vla_tune.reports.plots.outcomes import accuracy_by_type, frontier, success_by_task, variants
from vla_tune.reports.plots.training import curve, final_drift, layer_map

__all__ = [
    "accuracy_by_type",
    "agreement",
    "curve",
    "final_drift",
    "frontier",
    "layer_map",
    "layer_order",
    "matrix_map",
    "router_map",
    "short_names",
    "streams",
    "success_by_task",
    "variants",
]
