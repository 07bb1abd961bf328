"""The frontier of a study: what each variant kept against what it learnt, over all its seeds, as a table and a plot.

It is read from the runs' artifacts alone, and so can be made while a study is under way:
`python -m vla_tune.reports.frontier runs/frontier`.

- Success counts the episodes of all seeds together, with a Wilson 95 % interval. Seeds share their initial states, so it
  covers the chance of an episode, and the spread between trainings only as far as these show it.
- Retention (VQA accuracy after / before) is the mean over seeds. Its interval is a bootstrap that draws seeds and,
  crossed with them, pictures: all seeds answer the same questions. Few seeds make it too narrow; one seed leaves pictures alone.
- Minutes are those of training, the anchor left out, the mean over seeds; what interpolates another run has that run's too.
- The comparisons pair episodes of the same training seed, task and initial state; McNemar's exact test pools the pairs
  over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_tune.artifacts.folder import write_json
from vla_tune.artifacts.typed import read_json
from vla_tune.console import say
from vla_tune.errors import UserError
from vla_tune.reports import forms, plots, tables
from vla_tune.reports.runs import Row, Run, mean, read_run, train_metrics
from vla_tune.stats import bootstrap
from vla_tune.stats.intervals import percentile, wilson
from vla_tune.stats.paired import mcnemar

REFERENCES = ("full", "frozen")
"""The variants that the others are compared with."""
RESAMPLES = 2000


def write_frontier(out: Path, labels: list[str] | None = None, without: Sequence[Path] = ()) -> list[Row]:
    """Write `frontier.json`, `frontier.md` and, where two figures make a point, `frontier.svg` into a study's folder.

    Args:
        labels: the variants in their order; default: every one that has begun, by name.
        without: run folders that do not count.

    Raises:
        UserError: there is nothing in the folder yet, or an artifact is damaged.

    """
    study = read_study(out, labels, without)
    steps = out / "benchmark" / "steps.json"
    times = read_json(steps, dict[str, forms.StepTime]) if steps.is_file() else {}
    rows = [{**variant(label, runs, study), "step_ratio": times.get(label, {}).get("step_ratio")} for label, runs in study.items()]
    write_json(out / "frontier.json", rows)
    drawn = plots.variants(rows)
    if drawn:
        (out / "frontier.svg").write_text(drawn)
    (out / "frontier.md").write_text(markdown(rows, plot=drawn is not None))
    say(f"frontier: {out / 'frontier.md'}")
    return rows


def read_study(out: Path, labels: list[str] | None = None, without: Sequence[Path] = ()) -> dict[str, list[Run]]:
    """The runs of each variant that have a finished stage; an evaluation of a training replaced since is left out."""
    study: dict[str, list[Run]] = {}
    for folder in sorted(out.glob("*/seed-*")):
        if folder not in without and any(folder.glob("*/artifact.json")):
            run = read_run(folder)
            if "eval-vqa" in run.outdated:
                run.vqa, run.predictions = None, []
            if "eval-rollout" in run.outdated:
                run.rollout, run.episodes = None, []
            study.setdefault(folder.parent.name, []).append(run)
    if not study:
        raise UserError(f"{out}: no run of a study lies there (expected {out}/LABEL/seed-N/)")
    return {label: study[label] for label in labels or study if label in study}


def variant(label: str, runs: list[Run], study: dict[str, list[Run]]) -> Row:
    """A variant's row: rates in 0..1 with `low` and `high`, null where no run has got there."""
    asked, rolled = [run for run in runs if run.vqa], [run for run in runs if run.rollout]
    episodes = [episode for run in rolled for episode in run.episodes]
    return {
        "label": label,
        "seeds": {"vqa": [run.seed for run in asked], "rollout": [run.seed for run in rolled]},
        "vqa_before": mean([run.vqa["base_accuracy"]["value"] for run in asked if run.vqa]),
        "vqa_after": mean([run.vqa["accuracy"]["value"] for run in asked if run.vqa]),
        "retention": retention([run.predictions for run in asked]),
        "success": wilson(sum(one["success"] for one in episodes), len(episodes)) if episodes else None,
        "episodes": len(episodes),
        "heldout_loss": mean([run.artifacts["train"].metrics.get("heldout_loss") for run in runs if "train" in run.artifacts]),
        "minutes": mean([minutes(run) for run in runs]),
        **{f"against_{name}": compare(runs, study[name]) if name in study and name != label else None for name in REFERENCES},
    }


def retention(runs: list[list[Row]]) -> Row | None:
    """Mean retention of several seeds' predictions, with the interval of a bootstrap over seeds and pictures."""
    if not runs:
        return None
    pictures = {name: place for place, name in enumerate(sorted({row["image_id"] for rows in runs for row in rows}))}
    base, tuned = (np.stack([_by_picture(rows, key, pictures) for rows in runs]) for key in ("base_score", "score"))
    rng = np.random.default_rng(0)
    drawn = bootstrap.draws(len(pictures), RESAMPLES, rng)
    resampled = bootstrap.mean_over_runs(bootstrap.ratio(drawn @ tuned.T, drawn @ base.T), rng)
    value = float(bootstrap.ratio(tuned.sum(1), base.sum(1)).mean())
    return {"value": value, **percentile(resampled)}


def compare(runs: list[Run], reference: list[Run]) -> Row | None:
    """Success against a reference on the same training seed, task and initial state; None without a common episode."""
    theirs, ours = _successes(reference), _successes(runs)
    common = [key for key in theirs if key in ours]
    if not common:
        return None
    before, after = (np.array([float(each[key]) for key in common]) for each in (theirs, ours))
    return {"pairs": len(common), "difference": float(after.mean() - before.mean()), **mcnemar(before, after)}


def minutes(run: Run) -> float | None:
    """How long the training took, that of a run it was made from included; None where it is not recorded."""
    if "train" not in run.artifacts:
        return None
    manifest = run.artifacts["train"].manifest
    sources = [Path(made_from["path"]) for made_from in manifest["inputs"] if made_from["stage"] == "train"]
    recorded = [manifest["metrics"], *map(train_metrics, sources)]
    seconds = [metrics.get("seconds") for metrics in recorded]
    known = [one for one in seconds if one is not None]
    return sum(known) / 60 if len(known) == len(seconds) else None


def markdown(rows: list[Row], *, plot: bool) -> str:
    """The table for a reader."""
    header = ["variant", "seeds", "VQA after", "retention", "success", "episodes", "held-out loss", "minutes", "step ratio"]
    lines = [[*header, *(f"success against `{name}`" for name in REFERENCES)]]
    for row in rows:
        cells = [f"`{row['label']}`", str(max(map(len, row["seeds"].values()))), tables.percent(row["vqa_after"])]
        cells += [_figure(row["retention"]), _figure(row["success"]), tables.count(row["episodes"])]
        numbers = (("heldout_loss", 4), ("minutes", 1), ("step_ratio", 2))
        cells += [tables.NONE if row[name] is None else f"{row[name]:.{digits}f}" for name, digits in numbers]
        lines.append([*cells, *(_difference(row[f"against_{name}"]) for name in REFERENCES)])
    lines.insert(1, ["---"] * len(lines[0]))
    notes = (
        "Brackets are 95 % intervals: success pools the episodes of all seeds (Wilson); retention is the mean over seeds (bootstrap "
        "over seeds and, crossed with them, pictures). Held-out loss: the action loss on episodes that training left out, the mean over "
        "seeds. Minutes: mean training time, without the anchor. Comparisons: difference in points on the same training seed, task and "
        "initial state; in brackets episodes lost and gained, and p of McNemar's exact test over all seeds' pairs."
    )
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines), notes, *(["![frontier](frontier.svg)"] if plot else [])]
    return "\n\n".join(parts) + "\n"


def _figure(figure: Row | None) -> str:
    cell = tables.rate(figure)
    return f"{cell.text} [{cell.note.replace(' to ', ', ')}]" if cell.note else cell.text


def _difference(test: Row | None) -> str:
    if test is None:
        return tables.NONE
    return f"{100 * test['difference']:+.1f} (-{test['lost']} +{test['gained']}, {tables.p_value(test['p'])})"


def _by_picture(rows: list[Row], key: str, pictures: dict[Any, int]) -> npt.NDArray[np.float64]:
    places = [pictures[row["image_id"]] for row in rows]
    return bootstrap.cluster_totals(places, len(pictures), [row[key] for row in rows])


def _successes(runs: list[Run]) -> dict[tuple[Any, ...], bool]:
    return {(run.seed, one["task"], one["seed"]): one["success"] for run in runs for one in run.episodes}


def main(arguments: list[str] | None = None) -> None:
    """The command line of `python -m vla_tune.reports.frontier`."""
    from vla_tune.programs import reported

    parser = argparse.ArgumentParser(prog="python -m vla_tune.reports.frontier", description="A study's frontier, as far as it has got.")
    parser.add_argument("out", type=Path, help="the study's folder, such as runs/frontier")
    with reported("the same command again"):
        write_frontier(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
