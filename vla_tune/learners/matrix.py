"""Every task after every task: the matrix, and what is drawn from it."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vla_tune.console import progress
from vla_tune.engine import after as states
from vla_tune.experts.tasks import NONE
from vla_tune.geometry.continual import average, last, summary, transfer
from vla_tune.learners.deployed import Deployed
from vla_tune.vqa.scoring import Scored, resampled, summarise, widened

if TYPE_CHECKING:
    from torch import Tensor

    from vla_tune.artifacts.eval_cache import CellStore, Scores
    from vla_tune.methods.base import Method

HOW = ("sample", "batch", "given")
"""How samples are told apart by task; figures are those of the first, the others stand beside it (`Deployed`)."""


@dataclass
class Cell:
    """The scores of one task's test samples after one task `[n]`, the task that each was taken to be of, the picture it is about."""

    after: int
    task: int
    scores: Tensor
    tasks: Tensor | None
    about: list[str] | None = None

    @property
    def images(self) -> list[str]:
        """The picture that each sample is about; its own where no two are about the same."""
        return self.about or [str(number) for number in range(len(self.scores))]


def measure(method: Method, folder: Path, store: CellStore, *, tasks: bool, later: bool, reference: bool) -> dict[str, list[Cell]]:
    """The cells of the matrix, by how samples are told apart; those of the model that the stream started from as `start`.

    store: takes each cell as soon as it is scored.
    tasks: whether these are scored at all. later: also before they are learnt.
    reference: whether the samples that belong to no task are scored, before and after the stream, as the cells `reference`.
    """
    learner: Any = method.learner
    columns = list(range(len(learner.tasks))) if tasks else []
    rows = states.done(folder)
    ways = HOW if method.routes else HOW[:1]
    cells: dict[str, list[Cell]] = {how: [] for how in ways}

    about = functools.cache(learner.images)

    def score(after: int, task: int, how: str = HOW[0]) -> Cell:
        name = f"{'start' if after < 0 else after}-{task}-{how}"
        found = store.scored(name, lambda: learner.score(task, Deployed(method, how, task)))
        assert found is not None
        return Cell(after, task, *found, about(task))

    def score_reference(row: str) -> Scores | None:
        return store.scored(f"{row}-reference", lambda: learner.score_reference(Deployed(method))) if reference else None

    cells["start"] = [score(-1, task) for task in columns] if later else []
    before = score_reference("start")
    total = sum(1 for after in range(rows) for task in columns if later or task <= after)
    with progress("tasks after tasks", total, "cells") as counter:
        for after in range(rows):
            states.restore(folder, after, method)
            for task in columns:
                if not later and task > after:
                    continue
                cell = score(after, task)
                cells[HOW[0]].append(cell)
                for how in ways[1:] if after == rows - 1 else ():
                    known = cell.tasks is not None and bool((cell.tasks == task).all())  # to decide otherwise would change nothing
                    cells[how].append(cell if known else score(after, task, how))
                counter.advance()
    if before is not None and (now := score_reference(str(rows - 1))) is not None:
        cells["reference"] = [Cell(-1, NONE, *before, about(NONE)), Cell(rows - 1, NONE, *now, about(NONE))]
    return cells


def matrix_of(cells: list[Cell], rows: int, columns: list[int]) -> Tensor:
    """Mean scores `[rows, columns]`, float64; nan where nothing was measured."""
    matrix = torch.full((rows, len(columns)), torch.nan, dtype=torch.float64)
    for cell in cells:
        matrix[cell.after, columns.index(cell.task)] = cell.scores.mean()
    return matrix


def figures(cells: dict[str, list[Cell]], names: list[str], resamples: int, seed: int) -> dict[str, Any]:
    """What a report tells of a stream: the matrix, ZSCL's figures with 95 % intervals by bootstrap over test samples, the routing."""
    report: dict[str, Any] = {"tasks": names}
    if "reference" in cells:
        before, after = cells["reference"]
        report["reference"] = kept(before, after, resamples, seed)
    if not cells["sample"]:
        return report
    tasks = sorted({cell.task for cell in cells["sample"]})
    rows = 1 + max(cell.after for cell in cells["sample"])
    matrix = matrix_of(cells["sample"], rows, tasks)
    square = rows == len(tasks)
    report |= {
        "matrix": _listed(matrix),
        "start": [float(cell.scores.mean()) for cell in cells["start"]] or None,
        "n": [len(next(cell for cell in cells["sample"] if cell.task == task).scores) for task in tasks],
    }
    if square:
        report["figures"] = _with_intervals(cells["sample"], tasks, resamples, seed)
        report["by_task"] = {
            "transfer": [None, *_listed(transfer(matrix))],
            "average": _listed(average(matrix)),
            "last": _listed(last(matrix)),
        }
    for how in ("batch", "given"):
        if cells.get(how):
            report[f"last_by_{how}"] = {
                "by_task": [float(cell.scores.mean()) for cell in cells[how]],
                "mean": float(np.mean([float(cell.scores.mean()) for cell in cells[how]])),
            }
    ends = [cell for cell in cells["sample"] if cell.after == rows - 1 and cell.tasks is not None]
    if ends:
        report["taken_for"] = [
            [float((cell.tasks == task).double().mean()) for task in (*range(rows), -1)]  # type: ignore[union-attr]
            for cell in ends
        ]
    return report


def kept(before: Cell, after: Cell, resamples: int, seed: int) -> dict[str, Any]:
    """Accuracy before and after and their ratio, with 95 % intervals by paired bootstrap over pictures, as without a stream."""
    scored = Scored(before.images, [""] * len(before.scores), before.scores.numpy(), after.scores.numpy())
    told = summarise(scored, resamples=resamples, seed=seed)
    return {"before": told["base_accuracy"], "after": told["accuracy"], "retention": told["retention"], "n": told["n"]}


def _with_intervals(cells: list[Cell], tasks: list[int], resamples: int, seed: int) -> dict[str, dict[str, float | None]]:
    """Each figure of `summary`, what a task's test samples are about drawn again: the same samples of a task for every row.

    Of the two made-up samples (`resampled`) one is right after the last task alone, the other until then: the ends of every figure.
    """
    rng = np.random.default_rng(seed)
    rows = len(tasks)
    drawn = np.full((resamples, rows, rows), np.nan)
    for column, task in enumerate(tasks):
        own = {cell.after: cell for cell in cells if cell.task == task}
        ends = np.array([[row == rows - 1, row < rows - 1] for row in own], dtype=np.float64)
        scores = np.stack([cell.scores.numpy() for cell in own.values()])
        drawn[:, list(own), column] = resampled(scores, own[rows - 1].images, ends, resamples=resamples, rng=rng)
    point = summary(matrix_of(cells, rows, tasks))
    many = [summary(torch.from_numpy(one)) for one in drawn]
    nothing: dict[str, float | None] = {"value": None, "low": None, "high": None}
    return {name: nothing if value is None else widened(value, np.array([one[name] for one in many])) for name, value in point.items()}


def parameters(folder: Path) -> dict[str, Any]:
    """What each task trained and what the model has grown by, from the records of a stream."""
    records = [json.loads((folder / states.FOLDER / f"{task}.json").read_text())["record"] for task in range(states.done(folder))]
    trainable = [record["trainable"] for record in records]
    added = [sum(record["added"].values()) for record in records]
    return {
        "trainable": trainable,
        "mean_trainable": float(np.mean([one["mean"] for one in trainable])),
        "mean_trainable_first": float(np.mean([one["first"] for one in trainable])),
        "mean_trainable_last": float(np.mean([one["last"] for one in trainable])),
        "added": added,
        "final_added": added[-1],
        "final_parts": records[-1]["added"],
        "task_router": records[-1]["router"],
        "fresh": records[0]["fresh"],
        "records": records,
    }


def _listed(tensor: Tensor) -> list[Any]:
    """As JSON has it: null where nothing was measured."""
    if tensor.ndim > 1:
        return [_listed(row) for row in tensor]
    return [None if math.isnan(value) else value for value in tensor.tolist()]
