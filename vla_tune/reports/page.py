"""Puts the page and the numbers together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vla_tune.reports import media, plots, tables
from vla_tune.reports.provenance import provenance
from vla_tune.reports.runs import Row, Run, layer_series

CURVES = (
    ("loss", "loss", True),
    ("grad_norm", "gradient norm", True),
    ("lr", "learning rate", False),
    ("vqa_accuracy", "VQA accuracy in training", False),
    ("drift_vqa", "drift from the anchor", True),
)
METRICS = ("step", "loss", "lr", "grad_norm", "step_s", "data_s", "heldout_loss", "vqa_accuracy", "drift_vqa")


def numbers(runs: list[Run]) -> Row:
    """Everything that the page shows, for programs; what is not finite becomes null."""
    finite: Row = _finite({"runs": [_numbers(run) for run in runs]})
    return finite


def _numbers(run: Run) -> Row:
    return {
        "run": str(run.path),
        "label": run.label,
        "stages": list(run.artifacts),
        "outdated": run.outdated,
        "headline": tables.headline(run),
        "by_type": tables.by_type(run),
        "by_task": tables.by_task(run),
        "stream": run.stream,
        "language_probe": (run.rollout or {}).get("language_probe"),
        "offline": (run.rollout or {}).get("offline"),
        "layers": tables.layer_summary(run),
        "weights": (run.vqa or {}).get("weights"),
        "curves": {name: [row.get(name) for row in run.metrics] for name in METRICS},
        "diagnostics": layer_series(run.metrics),
        "changed_answers": media.changed_counts(run),
        "provenance": provenance(run),
    }


def page(runs: list[Run], made_at: str, version: str) -> str:
    """The whole report as one HTML page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    return environment.get_template("page.html").render(
        title=" · ".join(run.label for run in runs) if len(runs) <= 3 else f"{len(runs)} runs",
        made_at=made_at,
        version=version,
        runs=[_shown(run) for run in runs],
        headline=tables.headline_table(runs),
        outcome=_figures(
            [
                ("What was kept against what was learnt", plots.frontier(runs)),
                ("Accuracy by type of question", plots.accuracy_by_type(runs)),
                ("Closed-loop success by task", plots.success_by_task(runs)),
            ]
        ),
        drift=_figures([("Final drift by layer", plots.final_drift(runs)), *_layer_maps(runs)]),
        curves=_figures([(title[0].upper() + title[1:], plots.curve(runs, key, title, log=log)) for key, title, log in CURVES]),
    )


def _figures(drawn: list[tuple[str, str | None]], *, wide: bool = False) -> list[dict[str, Any]]:
    """Those figures that there was something to draw for; wide: each takes the width of the page."""
    from markupsafe import Markup

    return [{"title": title, "svg": Markup(svg), "wide": wide} for title, svg in drawn if svg]  # noqa: S704 - matplotlib escapes its text


def _shown(run: Run) -> Row:
    """What the page says of one run beside the common tables and figures."""
    origin = provenance(run)
    return {
        "label": run.label,
        "path": str(run.path),
        "running": run.running,
        "steps": run.steps,
        "outdated": run.outdated,
        "missing": [stage for stage in run.expected if stage not in run.artifacts],
        "of_stream": run.of_stream,
        "stream": _stream(run) if run.stream is not None else None,
        "types": tables.type_table(run),
        "tasks": tables.task_table(run),
        "probe": tables.probe_table(run),
        "offline": tables.offline_table(run),
        "moved": tables.moved_table(run),
        "layers": tables.layer_table(run),
        "weights": tables.weights_table(run),
        "mcnemar_p": tables.headline(run)["mcnemar_p"],
        "ranked": tables.ranked_line(run),
        "changed": media.changed_counts(run),
        "cards": media.changed_cards(run),
        "videos": [{"name": file.stem, "data": media.video_data(file)} for file in run.videos],
        "origin": origin,
        "config": json.dumps(origin["config"], indent=1),
    }


def _stream(run: Run) -> Row:
    """What the page says of a stream of tasks."""
    drawn = [
        ("Score on each task after each task", plots.matrix_map(run)),
        ("Router agreement in phase 1 (a ring: its end)", plots.agreement(run)),
    ]
    routing = [("Routing of each task: experts by the task that they were made for", plots.router_map(run))]
    return {
        "matrix": tables.matrix_table(run),
        "figures": tables.stream_table(run),
        "base": tables.base_table(run),
        "parameters": tables.parameters_table(run),
        "parts": tables.parts_line(run),
        "taken": tables.taken_table(run),
        "phase": tables.phase_table(run),
        "drawn": [*_figures(drawn), *_figures(routing, wide=True)],
    }


def _layer_maps(runs: list[Run]) -> list[tuple[str, str | None]]:
    maps: list[tuple[str, str | None]] = []
    for run in runs:
        of = f" · {run.label}" if len(runs) > 1 else ""
        maps += [
            (f"Drift in training{of}", plots.layer_map(run, "drift", "drift, W2² / width", log=True)),
            (f"Energy shed{of}", plots.layer_map(run, "energy_shed", "energy shed (%)", scale=100)),
            (f"Gradient cosine{of}", plots.layer_map(run, "cosine", "cosine of task and anchor", diverging=True)),
        ]
    return maps


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
