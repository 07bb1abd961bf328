"""The report's numbers: as plain values for `report.json`, and formatted for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_tune.reports.runs import DIAGNOSTICS, Row, Run, layer_series, mean, mean_energy_shed, median_step_s

NONE = "–"  # noqa: RUF001 - a dash where there is no number


FIGURES = ("last", "average", "transfer", "backward_transfer", "forgetting")
"""What is drawn from a stream's matrix."""
OTHER_WAYS = {"last_by_batch": "One decision a batch", "last_by_given": "Task given"}
"""How else a stream's samples are told apart by task."""
OF_STREAMS, OF_OTHERS = ("Last", "Backward transfer"), ("Closed-loop success", "Drift", "Energy shed")
"""Columns of the opening table that only streams fill, and that they leave empty."""


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
    """One run's figures, null where a stage is not there yet; rates in 0..1, each interval `{value, low, high}`.

    Of a stream, VQA is its base ability, and `stream` has the figures of its matrix.
    """
    vqa, rollout = run.vqa or base_ability(run), run.rollout or {}
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
        **({"stream": run.stream.get("figures")} if run.stream else {}),
    }


def base_ability(run: Run) -> Row:
    """What a stream's model could do before it and can do after it on what belongs to none of its tasks, named as VQA's figures are."""
    kept: Row | None = (run.stream or {}).get("reference")
    if kept is None:
        return {}
    return {"base_accuracy": kept["before"], "accuracy": kept["after"], "retention": kept["retention"], "n": kept["n"]}


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
    """The table that opens the page, a row a run; a column that only streams have, or only other runs, is there when one of them is."""
    of_stream = [run.of_stream for run in runs]
    left_out = {*(() if any(of_stream) else OF_STREAMS), *(OF_OTHERS if all(of_stream) else ())}
    rows = []
    for run in runs:
        figures = headline(run)
        of_tasks: Row = figures.get("stream") or {}
        state = "still training" if run.running else ""
        episodes = f"{figures['episodes']} episodes" if figures["episodes"] is not None else ""
        cells = {
            "Run": Cell(run.label, state),
            "Steps": Cell(NONE if figures["steps"] is None else f"{figures['steps']:,}"),
            "Last": rate(of_tasks.get("last")),
            "Backward transfer": rate(of_tasks.get("backward_transfer")),
            "VQA before": rate(figures["vqa_before"]),
            "VQA after": rate(figures["vqa_after"]),
            "Retention": rate(figures["retention"]),
            "Closed-loop success": rate(figures["success"], episodes),
            "Drift": Cell(number(figures["drift"])),
            "Energy shed": Cell(percent(figures["energy_shed"], 2)),
            "Step time": Cell(NONE if figures["step_s"] is None else f"{figures['step_s']:.3f} s"),
        }
        rows.append({name: cell for name, cell in cells.items() if name not in left_out})
    return Table(list(rows[0]), [list(row.values()) for row in rows])


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
    """Action error by joint of one run that had no simulator."""
    offline: Row = (run.rollout or {}).get("offline") or {}
    every = {"all": {**offline["action_error"], "constant": offline["constant"]["value"]}} if offline else {}
    rows = [
        [Cell(joint), Cell(number(row["value"]), f"{number(row['low'])} to {number(row['high'])}"), Cell(number(row["constant"]))]
        for joint, row in {**offline.get("by_joint", {}), **every}.items()
    ]
    return Table(["Joint", "Action error", "Mean action's"], rows)


def moved_table(run: Run) -> Table:
    """How far another instruction moves the action, of one run that had no simulator."""
    moved: Row = ((run.rollout or {}).get("offline") or {}).get("action_moved", {})
    rows = [[Cell(given), Cell(number(row["value"]), f"{number(row['low'])} to {number(row['high'])}")] for given, row in moved.items()]
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


def matrix_table(run: Run) -> Table:
    """A stream's score on each task after each task, and before the first."""
    stream = run.stream or {}
    names: list[str] = stream.get("tasks", [])
    rows = [("before the stream", stream["start"])] if stream.get("start") else []
    rows += [(f"after {name}", row) for name, row in zip(names, stream.get("matrix", []), strict=False)]
    return Table(["Score on", *names], [[Cell(name), *(Cell(percent(value)) for value in row)] for name, row in rows])


def stream_table(run: Run) -> Table:
    """A stream's figures; `last` also where samples are told apart by task in other ways."""
    stream = run.stream or {}
    found: dict[str, Row] = stream.get("figures", {})
    others = [(words, stream[key]["mean"]) for key, words in OTHER_WAYS.items() if stream.get(key)]
    rows = []
    for name in (name for name in FIGURES if name in found):
        beside = [Cell(percent(mean) if name == "last" else "") for _, mean in others]
        rows.append([Cell(name.replace("_", " ").capitalize()), rate(found[name]), *beside])
    return Table(["Figure", "One decision a sample" if others else "Mean over tasks", *(words for words, _ in others)], rows)


def base_table(run: Run) -> Table:
    """A stream's base ability."""
    kept = base_ability(run)
    row = [Cell("base ability"), Cell(count(kept.get("n"))), *(rate(kept.get(name)) for name in ("base_accuracy", "accuracy", "retention"))]
    return Table(["", "Samples", "Before", "After", "Retention"], [row] if kept else [])


def parameters_table(run: Run) -> Table:
    """What each task of a stream trained, and what the model has grown by since the stream began."""
    stream = run.stream or {}
    grown: Row = stream.get("parameters") or {}
    rows = [
        [Cell(name), Cell(count(one["first"])), Cell(count(one["last"])), Cell(count(round(one["mean"]))), Cell(count(added))]
        for name, one, added in zip(stream.get("tasks", []), grown.get("trainable", []), grown.get("added", []), strict=False)
    ]
    if len(rows) > 1:
        means = (grown[key] for key in ("mean_trainable_first", "mean_trainable_last", "mean_trainable"))
        rows.append([Cell("mean over tasks"), *(Cell(count(round(value))) for value in means), Cell("")])
    return Table(["Task", "Trained at first", "At last", "Mean over steps", "Added so far"], rows)


def parts_line(run: Run) -> str | None:
    """What a stream's model has grown by, part by part, in a sentence."""
    grown: Row = (run.stream or {}).get("parameters") or {}
    if not grown:
        return None
    parts = [f"{name} {count(value)}" for name, value in grown["final_parts"].items()]
    beside = [f"{count(grown['task_router'])} numbers tell samples apart by task"] if grown.get("task_router") else []
    if grown.get("fresh"):
        beside.append(f"{count(grown['fresh'])} of what the first task trained began untrained")
    return "; ".join([f"Added in all: {', '.join(parts) or 'nothing'}", *beside]) + "."


def taken_table(run: Run) -> Table:
    """What task the samples of each task were taken to be of after the stream."""
    stream = run.stream or {}
    names: list[str] = stream.get("tasks", [])
    rows = [
        [Cell(name), *(Cell(percent(share)) for share in shares)] for name, shares in zip(names, stream.get("taken_for", []), strict=False)
    ]
    return Table(["Samples of", *names[: len(rows)], "none"], rows)


def phase_table(run: Run) -> Table:
    """What phase 1 of iGSP found for each task; old experts are counted once a layer."""
    rows = [
        [
            Cell(one["name"]),
            Cell(count(one["ended"])),
            Cell(NONE if one.get("new") is None else f"{one['new']:,} of {one['candidates']:,}"),
            Cell(count(one.get("old"))),
        ]
        for one in run.tasks
        if "ended" in one
    ]
    return Table(["Task", "Phase 1 ended at step", "New experts kept", "Old experts used"], rows)


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
