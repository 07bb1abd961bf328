"""Ways to learn a stream side by side: what is known at the end against what was trained and added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_tune.artifacts import write_json
from vla_tune.console import say, table
from vla_tune.report import plots
from vla_tune.report.runs import Row, read_json, read_table
from vla_tune.report.tables import FIGURES

RESAMPLES = 2000


def write_comparison(out: Path, labels: list[str]) -> list[Row]:
    """Write `streams.json`, `streams.md` and `streams.svg` into a study's folder: a row a label, over all its seeds.

    Every row is compared with the first label: the difference of `last` on the same test samples and seeds, with a 95 % interval by
    paired bootstrap over samples.
    """
    study = {label: runs for label in labels if (runs := _runs(out / label))}
    reference = next(iter(study.values()))
    rows = [_row(label, runs, reference) for label, runs in study.items()]
    write_json(out / "streams.json", rows)
    (out / "streams.svg").write_text(plots.streams(rows))
    header = ["", "seeds", "last", "difference", "transfer", "backward transfer", "trained, mean", "added"]
    cells = [_cells(row) for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    (out / "streams.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n![last against parameters](streams.svg)\n")
    table(f"a stream, by how it is learnt (differences from {rows[0]['label']})", header, cells)
    say(f"comparison: {out / 'streams.md'}")
    return rows


def _runs(folder: Path) -> dict[int, dict[str, Any]]:
    """Report and last scores of each seed."""
    found = {}
    for run in sorted(folder.glob("seed-*")):
        for stage in ("eval-rollout", "eval-vqa"):
            file = run / stage / "report.json"
            if file.is_file() and (report := read_json(file)["stream"]).get("figures"):
                found[int(run.name.removeprefix("seed-"))] = {
                    "report": report,
                    "last": _last(run / stage / "cells.parquet", report["tasks"]),
                }
                break
    return found


def _last(file: Path, tasks: list[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Each task's scores after the last one."""
    scores: dict[str, list[float]] = {task: [] for task in tasks}
    for row in read_table(file):
        if row["after"] == tasks[-1] and row["task"]:
            scores[row["task"]].append(row["score"])
    return {task: np.array(values) for task, values in scores.items()}


def _row(label: str, runs: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> Row:
    shared = sorted(set(runs) & set(reference))
    row: Row = {"label": label, "seeds": len(runs)}
    for name in FIGURES:
        values = [run["report"]["figures"][name]["value"] for run in runs.values()]
        known = [value for value in values if value is not None]
        row[name] = {"value": float(np.mean(known)), "by_seed": values} if known else None
    row["last"] |= _interval([run["last"] for run in runs.values()])
    if runs is not reference and shared:
        pairs = [_minus(runs[seed]["last"], reference[seed]["last"]) for seed in shared]
        row["difference"] = {
            "value": float(np.mean([np.mean([one.mean() for one in pair.values()]) for pair in pairs])),
            **_interval(pairs),
        }
    parameters = [run["report"]["parameters"] for run in runs.values()]
    for name in ("mean_trainable", "final_added", "task_router"):
        row[name] = float(np.mean([one[name] for one in parameters]))
    return row


def _minus(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {task: scores - other[task] for task, scores in one.items()}


def _interval(runs: list[dict[str, npt.NDArray[np.float64]]]) -> dict[str, float]:
    """The 95 % interval of the mean over tasks and runs, a task's samples drawn again, the same for every run."""
    rng = np.random.default_rng(0)
    total = np.zeros(RESAMPLES)
    for task in runs[0]:
        scores = np.mean([run[task] for run in runs], axis=0)
        total += rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=RESAMPLES) @ scores / len(scores)
    low, high = np.quantile(total / len(runs[0]), [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _cells(row: Row) -> list[str]:
    def rate(figure: Row | None) -> str:
        if figure is None:
            return "-"
        between = f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" if "low" in figure else ""
        return f"{100 * figure['value']:.1f} %{between}"

    rates = [rate(row.get(name)) for name in ("last", "difference", "transfer", "backward_transfer")]
    return [row["label"], str(row["seeds"]), *rates, *(f"{round(row[name]):,}" for name in ("mean_trainable", "final_added"))]
