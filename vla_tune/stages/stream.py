"""The stages of a stream of tasks: `train` learns one task after another, the evaluations measure what is known after each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.eval_cache import KEPT as KEPT_SCORES
from vla_tune.artifacts.folder import Artifact, Draft, environment, read_artifact, write_json
from vla_tune.config import departures, protects, value_of
from vla_tune.console import say, table, warn
from vla_tune.data.identity import check_identity
from vla_tune.errors import UserError
from vla_tune.methods import method_class
from vla_tune.preflight.look import preflight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vla_tune.config import Config
    from vla_tune.evaluation.matrix import TaskScores
    from vla_tune.methods.base import Method

LEFT_OUT = {
    "train": ("method.full.vlm_lr", "data.heldout", "data.heldout_frames", "train.eval_every", "train.eval_questions", "train.keep_best"),
    "eval-vqa": ("vqa.ranked",),
    "eval-rollout": ("rollout.tasks", "rollout.probe", "rollout.compat"),
}
"""What a stage does without in a stream."""
KEPT = ("before", "after", "retention")
"""The figures of what belongs to no task."""
A_ROBOTS = (
    *("policy.path", "policy.type", "policy.settings"),
    *("data.manifest", "data.repo_id", "data.root", "data.rename", "vqa.manifest"),
)
"""What only a robot's stream reads, and an anchor."""


def warn_of_left_out(config: Config, stage: str) -> None:
    """Settings that training and evaluation of one task read, and a stream's do not."""
    plain = type(config)(name="")
    for key in LEFT_OUT[stage]:
        if value_of(config, key) != value_of(plain, key):
            warn(f"{key}={value_of(config, key)} is not used: a stream's {stage} does without it")
    for key in A_ROBOTS if not is_robots(config) else ():
        of_anchor = protects(config) and key != "policy.path"
        if value_of(config, key) != value_of(plain, key) and not of_anchor:
            instead = {"policy.path": "; set policy.base_vlm", "vqa.manifest": "; set stream.reference"}.get(key, "")
            warn(f"{key}={value_of(config, key)} is not used: only a robot's stream reads it{instead}")
    if stage == "train":
        _warn_of_places(config)
        if method_class(config.method.name, of_stream=True).routes and not is_robots(config) and not config.stream.reference:
            warn("stream.reference is not set: whatever belongs to no task will be taken for one of the tasks")


def _warn_of_places(config: Config) -> None:
    """Settings of where in a model training goes, where the strategy goes by others."""
    name, whole = config.method.name, config.method.name in ("full", "replay")
    if whole and (config.stream.parts or config.stream.linears):
        warn(f"stream.parts and stream.linears are not used: {name} trains all weights")
    if name == "moe_adapters" and config.stream.linears:
        warn(f"stream.linears={config.stream.linears} is not used: moe_adapters' go to whole blocks")
    for key in ("train_expert_only", "freeze_vision_encoder") if is_robots(config) and not whole else ():
        if config.policy.settings.get(key):
            warn(f"policy.settings.{key} does not keep {name} out of the VLM; stream.parts says which parts it goes to")


def finish(method: Method, draft: Draft) -> dict[str, Any]:
    """Write what a learnt stream has beside its model; what the artifact tells of it."""
    from vla_tune.evaluation.matrix import parameters
    from vla_tune.reports.runs import median_step_s, read_metrics

    rows = read_metrics(draft.path / "metrics.jsonl")
    grown = parameters(draft.path)
    write_json(draft.path / "stream.json", grown)
    _save_merged(method, draft)
    _show_parameters(method.learner.tasks, grown)
    return {
        "steps": rows[-1]["step"],
        "loss": rows[-1]["loss"],
        "step_s": median_step_s(rows) or 0.0,
        "tasks": len(method.learner.tasks),
        "mean_trainable": grown["mean_trainable"],
        "final_added": grown["final_added"],
    }


def _save_merged(method: Method, draft: Draft) -> None:
    """With `stream.merged`, a stock model a task under `merged/<task>/`."""
    learner = method.learner
    if not learner.config.stream.merged:
        return
    for number, name in enumerate(learner.tasks):
        merged = method.merged(number)
        if merged is None:
            warn(f"stream.merged is left out: {method.name} has no weights of one task alone")
            return
        place = Path("merged") / name
        (draft.path / place).mkdir(parents=True, exist_ok=True)
        with merged:
            learner.save(draft.path / place, draft.target / place)


def evaluate(config: Config, run: Path, *, overwrite: bool) -> Artifact:
    """Score `RUN/train` (or `train.path`) on the test samples of its tasks and on what belongs to none, and write `RUN/eval-vqa`.

    A robot's tasks are scored by `evaluate_rollouts`; here it is the base ability of its VLM alone. Interrupted, it keeps what is
    scored, and the same command goes on from it.
    """
    warn_of_left_out(config, "eval-vqa")
    with Draft(run / "eval-vqa", "eval-vqa", overwrite=overwrite, keep=[KEPT_SCORES], drop=[KEPT_SCORES]) as draft:
        return _evaluate(config, run, draft, worlds=False)


def evaluate_rollouts(config: Config, run: Path, *, overwrite: bool) -> Artifact:
    """Run the robot's tasks in closed loop after each task, and write `RUN/eval-rollout`; interrupted, as `evaluate`.

    Raises:
        UserError: the stream is not a robot's.

    """
    if not is_robots(config):
        raise UserError("eval-rollout: this stream is of pictures or questions, which eval-vqa scores; there is no world to act in")
    warn_of_left_out(config, "eval-rollout")
    with Draft(run / "eval-rollout", "eval-rollout", overwrite=overwrite, keep=[KEPT_SCORES], drop=[KEPT_SCORES]) as draft:
        return _evaluate(config, run, draft, worlds=True)


def is_robots(config: Config) -> bool:
    """Whether a stream is of a robot's tasks."""
    return any(task.tasks for task in config.stream.tasks)


def _evaluate(config: Config, run: Path, draft: Draft, *, worlds: bool) -> Artifact:
    from vla_tune.artifacts.eval_cache import ScoreStore
    from vla_tune.evaluation.matrix import figures, measure, parameters
    from vla_tune.learners.deployed import Deployed
    from vla_tune.stages.current import read_by, sources
    from vla_tune.stages.opening import open_method

    source = Path(config.train.path) if config.train.path else run / "train"
    artifact = read_artifact(source, "train", f"vla-tune train {config.pipeline} --out {run}")
    names = check_stream(config, artifact)
    if dataset := preflight(config):
        check_identity(artifact.path, dataset, "evaluate on what it was, or train again")
    if done := draft.finished(config.to_dict(), [artifact.as_input()]):
        return done
    steps = artifact.config["train"]["steps"]  # a method's own checks are of the training that there was
    method = open_method(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps)))
    tasks = worlds or not is_robots(config)
    read = config.to_dict()
    basis = {
        "read": read_by(draft.stage, read),
        "files": sources(draft.stage, read),
        "train": artifact.digest,
        "environment": environment(config.device),
    }
    store = ScoreStore(draft.path, basis)
    cells = measure(method, source, store, tasks=tasks, later=not worlds, reference=not worlds)
    if worlds:
        learner: Any = method.learner
        learner.film(Deployed(method), draft.path / "videos")
    found: dict[str, Any] = {**figures(cells, names, config.vqa.bootstrap, config.seed), "parameters": parameters(source)}
    report: dict[str, Any] = {"stream": found}
    if "reference" in found and not tasks:
        kept = found["reference"]
        report |= {"base_accuracy": kept["before"], "accuracy": kept["after"], "retention": kept["retention"], "n": kept["n"]}
    _write_cells(draft.path / "cells.parquet", [cell for kind in ("start", "sample", "reference") for cell in cells.get(kind, [])], names)
    write_json(draft.path / "report.json", report)
    show(found)
    metrics = {name: figure["value"] for name, figure in found.get("figures", {}).items()}
    if "reference" in found:
        metrics |= {name: figure["value"] for name in KEPT if (figure := found["reference"][name])}
    return draft.publish(config=config.to_dict(), inputs=[artifact.as_input()], metrics=metrics, device=config.device)


def check_stream(config: Config, artifact: Artifact) -> list[str]:
    """The names of the tasks that a train artifact has learnt, which must be those of the configuration."""
    learnt = [task["name"] for task in artifact.config.get("stream", {}).get("tasks", [])]
    asked = [task.name for task in config.stream.tasks]
    if learnt != asked:
        raise UserError(f"{artifact.path} has learnt the tasks {', '.join(learnt) or '(none)'}, and stream.tasks names {', '.join(asked)}")
    for was, task in zip(artifact.config["stream"]["tasks"], config.to_dict()["stream"]["tasks"], strict=True):
        if was != task:
            raise UserError(f"{artifact.path} has learnt {was}, and stream.tasks has {task}; give the same to evaluate it")
    free = ["data.cache_mb", "stream.tasks", "stream.folder", "stream.merged", "stream.reference"]
    if changed := departures(config, artifact.config, ("policy", "data", "method", "stream"), free):
        raise UserError(f"{artifact.path} was trained with other values: {changed}; give the same to evaluate it")
    return learnt


def _write_cells(file: Path, cells: Sequence[TaskScores], names: list[str]) -> None:
    """A row a sample and cell: `after` (empty: before the stream), `task` (empty: of none), `sample`, `image`, `score`, `taken_for`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for cell in cells:
        count = len(cell.scores)
        known = cell.tasks if cell.tasks is not None and len(cell.tasks) == count else None  # an episode has several calls
        taken = [None] * count if known is None else [names[one] if one >= 0 else "" for one in known.tolist()]
        parts.append(
            pa.table(
                {
                    "after": pa.array([names[cell.after] if cell.after >= 0 else ""] * count),
                    "task": pa.array([names[cell.task] if cell.task >= 0 else ""] * count),
                    "sample": pa.array(range(count)),
                    "image": pa.array(cell.images, pa.string()),
                    "score": pa.array(cell.scores.tolist()),
                    "taken_for": pa.array(taken, pa.string()),
                }
            )
        )
    pq.write_table(pa.concat_tables(parts), file)


def show(report: dict[str, Any]) -> None:
    """The matrix and its figures on the console."""
    names = report["tasks"]

    def cells(values: list[float | None]) -> list[str]:
        return ["-" if value is None else f"{100 * value:.1f}" for value in values]

    if "matrix" in report:
        rows = [["(before)", *cells(report["start"])]] if report["start"] else []
        rows += [[name, *cells(row)] for name, row in zip(names, report["matrix"], strict=False)]
        table("score (%) on each task (columns) after each task (rows)", ["after", *names], rows)
    if kept := report.get("reference"):
        parts = (
            f"{name} {100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
            for name in KEPT
            if (figure := kept[name])  # there is nothing to retain where nothing was right before
        )
        say(f"what belongs to no task, {kept['n']} samples: {', '.join(parts)}")
    for name, figure in report.get("figures", {}).items():
        if figure["value"] is not None:
            say(f"{name.replace('_', ' ')}: {100 * figure['value']:.1f} % [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]")
    for how, words in (("batch", "one decision for all samples seen together"), ("given", "the task given")):
        if found := report.get(f"last_by_{how}"):
            say(f"last, {words}: {100 * found['mean']:.1f} %")


def _show_parameters(names: list[str], grown: dict[str, Any]) -> None:
    rows = [
        [name, f"{one['first']:,}", f"{one['last']:,}", f"{round(one['mean']):,}", f"{added:,}"]
        for name, one, added in zip(names, grown["trainable"], grown["added"], strict=True)
    ]
    table("parameters", ["task", "trained at first", "at last", "mean over steps", "added so far"], rows)


def show_plan(config: Config, method: Method) -> None:
    """Print what would be learnt, and how much of the model the first task trains."""
    total = sum(p.numel() for p in method.model.parameters())
    method.begin(0)
    trained = sum(p.numel() for p in method.parameters())
    say(f"{config.method.name}: {len(method.learner.tasks)} tasks of {config.train.steps} steps of {config.train.batch_size} samples")
    say(f"the model has {total:,} parameters; the first task trains {trained:,}; nothing was trained")
