"""Ways to learn a stream side by side: what is known at the end against what was trained and added."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_tune.artifacts.folder import write_json
from vla_tune.artifacts.typed import read_json
from vla_tune.config import completed, option_of
from vla_tune.console import say, table, warn
from vla_tune.errors import UserError, nearest
from vla_tune.reports import forms, plots
from vla_tune.reports.runs import EVALUATIONS, FORMS, Row, read_run, read_stream, read_table
from vla_tune.reports.tables import FIGURES
from vla_tune.stats import bootstrap
from vla_tune.stats.intervals import percentile_around

RESAMPLES = 2000
RATES, CHANGES = (0.0, 1.0), (-1.0, 1.0)
"""What a sample's score can be, and a difference of two."""

SAMPLES = {
    "eval-vqa": ("stream.tasks", "stream.reference", "vqa.manifest", "vqa.questions"),
    "eval-rollout": ("stream.tasks", "rollout.episodes", "rollout.first_seed"),
}
"""The settings of an evaluation that say which samples it scores."""

Scores = dict[str, npt.NDArray[np.float64]]
"""Test samples' scores, or differences of them, by task."""
Images = dict[str, list[str]]
"""The picture that each of them is about, by task."""


def write_comparison(out: Path, labels: list[str], without: Sequence[Path] = ()) -> list[Row]:
    """Write `streams.json`, `streams.md` and `streams.svg` into a study's folder: a row a label, over all its seeds.

    Every row is compared with the first label: the difference of `last` on the same test samples and seeds, with a 95 % interval by
    paired bootstrap over samples. `first_task`: what the first task scores after the last one, less what it scored after its own
    training; `reference`: what belongs to no task, after the stream less before it; likewise on the same samples.

    Args:
        without: run folders that do not count; neither do evaluations of a training that was replaced since.

    Raises:
        UserError: nothing has been scored on the stream's tasks yet, or an artifact is damaged.

    """
    study = _alike({label: _runs(out / label, without) for label in labels})
    if not study:
        raise UserError(f"{out}: no run has been scored on its tasks; that is eval-rollout's part for a robot, else eval-vqa's")
    rows = [_row(label, runs, study.get(labels[0], {})) for label, runs in study.items()]
    write_json(out / "streams.json", rows)
    (out / "streams.svg").write_text(plots.streams(rows))
    names = ("last", "difference", "transfer", "backward transfer", "first task", "of no task", "trained, mean", "added")
    header = ["", "seeds", *names]
    cells = [_cells(row) for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    (out / "streams.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n![last against parameters](streams.svg)\n")
    table(f"a stream, by how it is learnt (differences from {labels[0]})", header, cells)
    say(f"comparison: {out / 'streams.md'}")
    return rows


def _alike(study: dict[str, dict[int, dict[str, Any]]]) -> dict[str, dict[int, dict[str, Any]]]:
    """The labels that have runs, without runs that were scored on other samples than the first: they cannot be compared."""
    first: Row = next((run["samples"] for runs in study.values() for run in runs.values()), {})
    for label, runs in study.items():
        for seed, run in list(runs.items()):
            others = [f"{key}={value} and not {first[key]}" for key, value in run["samples"].items() if first.get(key, value) != value]
            if others:
                warn(f"{label}, seed {seed}, is left out: it was scored with {', '.join(others)}")
                del runs[seed]
    return {label: runs for label, runs in study.items() if runs}


def _runs(folder: Path, without: Sequence[Path]) -> dict[int, dict[str, Any]]:
    """Each seed's report, its last scores, and what changed on the first task and on what belongs to no task."""
    found = {}
    for run in sorted(folder.glob("seed-*")):
        if run in without or not any(run.glob("*/artifact.json")):
            continue
        read = read_run(run)
        stages = [stage for stage in EVALUATIONS if stage in read.artifacts and stage not in read.outdated]
        report = read_stream({stage: read_json(read.artifacts[stage].file("report.json"), FORMS[stage]) for stage in stages})
        if report is None or "figures" not in report:
            continue
        asked = {stage: completed(read.artifacts[stage].config) for stage in stages}
        scores, images = _scores([read.artifacts[stage].file("cells.parquet") for stage in stages])
        tasks = report["tasks"]
        first, last = tasks[0], tasks[-1]
        changes = {"first_task": (first, first, last), "reference": ("", "", last)}
        found[int(run.name.removeprefix("seed-"))] = {
            "report": report,
            "samples": {key: option_of(config, key) for stage, config in asked.items() for key in SAMPLES[stage]},
            "images": images,
            "last": {task: scores[last, task] for task in tasks},
            **{
                name: {task: scores[after, task] - scores[before, task]}
                for name, (task, before, after) in changes.items()
                if (after, task) in scores
            },
        }
    return found


def _scores(files: list[Path]) -> tuple[dict[tuple[str, str], npt.NDArray[np.float64]], Images]:
    """The scores by what had been learnt and by task, empty for nothing and for no task; and the pictures by task."""
    scores: dict[tuple[str, str], list[float]] = {}
    images: dict[tuple[str, str], list[str]] = {}
    for row in (row for file in files for row in read_table(file, forms.CellRow)):
        cell = row["after"], row["task"]
        scores.setdefault(cell, []).append(row["score"])
        images.setdefault(cell, []).append(row.get("image", str(row["sample"])))  # earlier versions did not write it
    return {cell: np.array(values) for cell, values in scores.items()}, {task: about for (_, task), about in images.items()}


def _row(label: str, runs: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> Row:
    row: Row = {"label": label, "seeds": len(runs)}
    for name in FIGURES:
        values = [run["report"]["figures"][name]["value"] for run in runs.values()]
        known = [value for value in values if value is not None]
        row[name] = {"value": float(np.mean(known)), "by_seed": values} if known else None
    images = next(run["images"] for run in runs.values())
    row["last"] = _estimate([run["last"] for run in runs.values()], images, RATES) | row["last"]
    for name in ("first_task", "reference"):
        changes = [run[name] for run in runs.values() if name in run]
        row[name] = _estimate(changes, images, CHANGES) if changes else None
    pairs = [_minus(runs[seed]["last"], reference[seed]["last"]) for seed in sorted(set(runs) & set(reference))]
    if runs is not reference and pairs:
        row["difference"] = _estimate(pairs, images, CHANGES)
    parameters = [run["report"]["parameters"] for run in runs.values()]
    for name in ("mean_trainable", "final_added", "task_router"):
        row[name] = float(np.mean([one[name] for one in parameters]))
    return row


def _minus(one: Scores, other: Scores) -> Scores:
    return {task: scores - other[task] for task, scores in one.items()}


def _estimate(runs: list[Scores], images: Images, ends: tuple[float, float]) -> dict[str, float | None]:
    """The mean over tasks and runs, and its 95 % interval: what a task's samples are about drawn again, the same for every run.

    ends: what a score can be at least and at most (`bootstrap.means`).
    """
    rng = np.random.default_rng(0)
    total = np.zeros(RESAMPLES)
    for task in runs[0]:
        scores = np.mean([run[task] for run in runs], axis=0)[None]
        total += bootstrap.means(scores, images[task], np.array([ends]), resamples=RESAMPLES, rng=rng)[:, 0]
    value = float(np.mean([[scores.mean() for scores in run.values()] for run in runs]))
    return percentile_around(value, total / len(runs[0]))


def _cells(row: Row) -> list[str]:
    def rate(figure: Row | None) -> str:
        if figure is None:
            return "-"
        between = f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" if "low" in figure else ""
        return f"{100 * figure['value']:.1f} %{between}"

    rates = [rate(row.get(name)) for name in ("last", "difference", "transfer", "backward_transfer", "first_task", "reference")]
    return [row["label"], str(row["seeds"]), *rates, *(f"{round(row[name]):,}" for name in ("mean_trainable", "final_added"))]


def main(arguments: list[str] | None = None) -> None:
    """The command line of `python -m vla_tune.reports.streams`."""
    from vla_tune.programs import reported

    parser = argparse.ArgumentParser(prog="python -m vla_tune.reports.streams", description="A study of a stream, as far as it has got.")
    parser.add_argument("out", type=Path, help="the study's folder, such as runs/stream-images")
    parser.add_argument("labels", nargs="*", help="variants in the order of their rows, the one that others are compared with first")
    given = parser.parse_args(arguments)
    with reported("the same command again"):
        known = sorted({run.parent.name for run in given.out.glob("*/seed-*")})
        for label in given.labels:
            if label not in known:
                raise UserError(f"{given.out}: there is no variant '{label}'; {nearest(label, known)}")
        write_comparison(given.out, [*given.labels, *(label for label in known if label not in given.labels)])


if __name__ == "__main__":
    main()
