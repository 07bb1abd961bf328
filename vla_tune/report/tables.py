"""The report's numbers: as plain values for `report.json`, and formatted for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_tune.report.runs import DIAGNOSTICS, Row, Run, layer_series, mean, mean_energy_shed, median_step_s

NONE = "–"  # noqa: RUF001 - a dash where there is no number


@dataclass(frozen=True)
class Cell:
    """A table's cell: the number, and its interval or note below it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A header and rows of cells; the first column names the row."""

    header: list[str]
    rows: list[list[Cell]]


def headline(run: Run) -> Row:
    """One run's figures, null where a stage is not there yet; rates in 0..1, each interval `{value, low, high}`."""
    vqa, rollout = run.vqa or {}, run.rollout or {}
    return {
        "method": run.method,
        "seed": run.seed,
        "steps": run.steps,
        "running": run.running,
        "vqa_before": vqa.get("base_accuracy"),
        "vqa_after": vqa.get("accuracy"),
        "retention": vqa.get("retention"),
        "questions": vqa.get("n"),
        "mcnemar_p": vqa.get("mcnemar_p"),
        "success": rollout.get("success"),
        "episodes": len(run.episodes) or None,
        "drift": vqa.get("drift"),
        "energy_shed": mean_energy_shed(run.metrics),
        "step_s": median_step_s(run.metrics),
    }


def by_type(run: Run) -> dict[str, Row]:
    """VQA accuracy by type of question: base, tuned, retention, the blind guesser's, and how many questions."""
    types: dict[str, Row] = (run.vqa or {}).get("by_type", {})
    names = ("n", "base_accuracy", "accuracy", "retention", "blind")
    return {kind: {name: row.get(name) for name in names} for kind, row in types.items()}


def ranked_line(run: Run) -> str | None:
    """What the VLM knew by likelihood of candidate answers, before and after, in a sentence."""
    ranked: Row | None = (run.vqa or {}).get("ranked")
    if ranked is None:
        return None
    before, after = (percent(ranked[name]["value"]) for name in ("base_accuracy", "accuracy"))
    return (
        f"By likelihood of candidate answers ({ranked['n']} questions): {before} before, {after} after; at best {percent(ranked['best'])}"
    )


def by_task(run: Run) -> dict[str, Row]:
    """Closed-loop success by task, with its interval and the number of episodes."""
    tasks: dict[str, Row] = (run.rollout or {}).get("by_task", {})
    return {task: {name: row.get(name) for name in ("value", "low", "high", "episodes")} for task, row in tasks.items()}


def layer_summary(run: Run) -> list[Row]:
    """A row a layer: the diagnostics' means over the training, and the final drift."""
    series = layer_series(run.metrics)
    final: list[float | None] = (run.vqa or {}).get("drift_by_layer") or []
    count = max(len(final), len(series["drift"]) if series else 0)
    rows = []
    for layer in range(count):
        row: Row = {"layer": layer}
        for name in DIAGNOSTICS[:3]:
            row[name] = mean(series[name][layer]) if series and layer < len(series[name]) else None
        row["final_drift"] = final[layer] if layer < len(final) else None
        rows.append(row)
    return rows


def headline_table(runs: list[Run]) -> Table:
    """The table that opens the page, a row a run."""
    header = ["Run", "Steps", "VQA before", "VQA after", "Retention", "Closed-loop success", "Drift", "Energy shed", "Step time"]
    rows = []
    for run in runs:
        figures = headline(run)
        state = "still training" if run.running else ""
        episodes = f"{figures['episodes']} episodes" if figures["episodes"] is not None else ""
        rows.append(
            [
                Cell(run.label, state),
                Cell(NONE if figures["steps"] is None else f"{figures['steps']:,}"),
                rate(figures["vqa_before"]),
                rate(figures["vqa_after"]),
                rate(figures["retention"]),
                rate(figures["success"], episodes),
                Cell(number(figures["drift"])),
                Cell(percent(figures["energy_shed"], 2)),
                Cell(NONE if figures["step_s"] is None else f"{figures['step_s']:.3f} s"),
            ]
        )
    return Table(header, rows)


def type_table(run: Run) -> Table:
    """VQA by type of one run."""
    rows = [
        [
            Cell(kind.replace("_", " ")),
            Cell(count(row["n"])),
            rate(row["base_accuracy"]),
            rate(row["accuracy"]),
            rate(row["retention"]),
            Cell(percent(row["blind"])),
        ]
        for kind, row in by_type(run).items()
    ]
    return Table(["Type", "Questions", "Before", "After", "Retention", "Blind"], rows)


def task_table(run: Run) -> Table:
    """Closed-loop success by task of one run."""
    rows = [[Cell(task), Cell(count(row["episodes"])), rate(row)] for task, row in by_task(run).items()]
    return Table(["Task", "Episodes", "Success"], rows)


def offline_table(run: Run) -> Table:
    """Action error by joint of one run that had no world to act in."""
    offline: Row = (run.rollout or {}).get("offline") or {}
    every = {"all": {**offline["action_error"], "constant": offline["constant"]["value"]}} if offline else {}
    rows = [
        [Cell(joint), Cell(number(row["value"]), f"{row['low']:.3g} to {row['high']:.3g}"), Cell(number(row["constant"]))]
        for joint, row in {**offline.get("by_joint", {}), **every}.items()
    ]
    return Table(["Joint", "Action error", "Mean action's"], rows)


def moved_table(run: Run) -> Table:
    """How far another instruction moves the action, of one run that had no world to act in."""
    moved: Row = ((run.rollout or {}).get("offline") or {}).get("action_moved", {})
    rows = [[Cell(given), Cell(number(row["value"]), f"{row['low']:.3g} to {row['high']:.3g}")] for given, row in moved.items()]
    return Table(["Instruction", "Action moves by"], rows)


def probe_table(run: Run) -> Table:
    """The language probe of one run: success of the original task under each instruction."""
    names = {"right": "right", "swapped": "another task's", "empty": "none", "followed": "another's, followed"}
    probe: Row = (run.rollout or {}).get("language_probe") or {}
    rows = [[Cell(name), Cell(count(probe[given]["episodes"])), rate(probe[given])] for given, name in names.items() if probe.get(given)]
    return Table(["Instruction", "Episodes", "Success"], rows)


def layer_table(run: Run) -> Table:
    """The diagnostics by layer of one run."""
    rows = [
        [
            Cell(str(row["layer"])),
            Cell(number(row["final_drift"])),
            Cell(NONE if row["cosine"] is None else f"{row['cosine']:+.3f}"),
            Cell(percent(row["projected"])),
            Cell(percent(row["energy_shed"], 2)),
        ]
        for row in layer_summary(run)
    ]
    return Table(["Layer", "Final drift", "Mean cosine", "Steps projected", "Energy shed"], rows)


def weights_table(run: Run) -> Table:
    """Which groups of the VLM's weights fine-tuning moved, and how far."""
    groups: list[Row] = (run.vqa or {}).get("weights", [])
    rows = [
        [
            Cell(group["group"]),
            Cell(count(group["parameters"])),
            Cell(f"{group['moved']} of {group['tensors']}"),
            Cell(number(group["relative"])),
            Cell(number(group["largest"])),
        ]
        for group in groups
    ]
    return Table(["Weights", "Parameters", "Tensors moved", "Relative change", "Largest change"], rows)


def rate(figure: Row | None, note: str = "") -> Cell:
    """An accuracy or a rate in percent, its 95 % interval below."""
    if not figure or figure["value"] is None:
        return Cell(NONE)
    span = ""
    if figure["low"] is not None and figure["high"] is not None:
        span = f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}"
    return Cell(percent(figure["value"]), ", ".join(part for part in (span, note) if part))


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 0..1 in percent."""
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def p_value(p: float) -> str:
    """`p = ...`, or a bound where it underflows."""
    return f"p = {p:.2g}" if p else "p < 1e-300"


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.3g}"


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return NONE if value is None else f"{value:,}"
