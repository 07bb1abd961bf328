"""`make reproduce` and `make frontier`: every variant and seed of a study through the stages in one process, then report and table.

Run again, it keeps each stage whose configuration and inputs are unchanged and redoes the rest.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_tune.artifacts.claim import check_out, check_working
from vla_tune.artifacts.folder import Draft, read_artifact, sync_folder, write_json
from vla_tune.artifacts.typed import read_json
from vla_tune.config import Config, MethodConfig, completed, own_options, protects
from vla_tune.console import say, table, warn
from vla_tune.errors import RunError, UserError
from vla_tune.programs import reported
from vla_tune.reports import forms
from vla_tune.reports.frontier import write_frontier
from vla_tune.reports.runs import FORMS, mean_energy_shed, read_metrics
from vla_tune.reports.streams import write_comparison
from vla_tune.reports.tables import NONE, number, percent
from vla_tune.stages.current import read_by, record_sources, stale
from vla_tune.studies import Plan, load_study, make_plan, narrowed

Times = dict[str, tuple[float, float]]
"""A training step in seconds, and as a multiple of plain fine-tuning's, by label."""


class Clock:
    """Says what happens and when, in minutes since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._began) / 60

    def say(self, text: str) -> None:
        say(f"[{self.minutes:5.1f} min] {text}")


def main(arguments: list[str] | None = None) -> None:
    """The command line of `python -m vla_tune.reproduce`."""
    parser = argparse.ArgumentParser(prog="python -m vla_tune.reproduce", description="A study, end to end, and its table.")
    parser.add_argument("--study", default="reproduce", help="a shipped study's name, or the path of a YAML file")
    parser.add_argument("--methods", help="which of its variants, or methods by their plain names, with commas between; or all")
    parser.add_argument("--seeds", type=int, help="how many seeds, instead of the study's own number")
    parser.add_argument("--pipeline", help="another pipeline than the study's own")
    parser.add_argument("--out", type=Path, help="where the runs lie; default: runs/<study>")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args(arguments)
    with reported("the same command again"):
        study = load_study(given.study)
        study = narrowed(study, given.methods) if given.methods is not None else study
        study = replace(study, seeds=study.seeds if given.seeds is None else given.seeds, pipeline=given.pipeline or study.pipeline)
        reproduce(make_plan(study, given.out or Path("runs") / study.name, given.overrides))


def reproduce(plan: Plan) -> list[dict[str, Any]]:
    """Everything that is not there yet, then the report, the table and the frontier; returns the table's rows.

    Raises:
        RunError: at the end, where a run failed (its loss is no number, say): the others were made, and the table is theirs.

    """
    clock = Clock()
    clock.say(f"{len(plan.configs)} runs in {plan.out}: {', '.join(f'{label} seed {seed}' for label, seed in plan.configs)}")
    failed: list[tuple[str, int]] = []
    for (label, seed), config in plan.configs.items():
        try:
            _check_needs(plan, label, seed, failed)
            _one_run(plan, label, seed, config, clock)
        except RunError as error:
            warn(f"{label}, seed {seed}, failed, and the study goes on without it: {error}")
            failed.append((label, seed))
    plan = replace(plan, configs={key: config for key, config in plan.configs.items() if key not in failed})
    if not plan.configs:
        raise RunError("every run of the study failed")
    streams = any(config.stream.tasks for config in plan.configs.values())
    if streams and "benchmark" in plan.stages:
        warn("the stage `benchmark` is not of a stream; benchmarks/streams.py measures the step")
    without = [plan.folder(*key) for key in failed]
    rows = write_comparison(plan.out, plan.labels, without) if streams else _report(plan, clock, without)
    if failed:
        names = ", ".join(f"{label} seed {seed}" for label, seed in failed)
        raise RunError(f"{len(failed)} runs failed and are not in the table: {names}")
    return rows


def _report(plan: Plan, clock: Clock, without: list[Path]) -> list[dict[str, Any]]:
    """The report of all runs, the table and the frontier."""
    times = _step_times(plan, clock) if "benchmark" in plan.stages else {}
    clock.say("report")
    folders = [plan.folder(*key) for key in plan.configs]
    stage_function("report")(folders, plan.out / "report", overwrite=True)
    rows = [_table_row(plan, label, seed, times.get(label, (None, None))) for label, seed in plan.configs]
    write_json(plan.out / "table.json", rows)
    _show(rows)
    write_frontier(plan.out, plan.labels, without)
    say(f"table: {plan.out / 'table.json'}; report: {plan.out / 'report' / 'report.html'}; {clock.minutes:.1f} minutes in all")
    return rows


def _check_needs(plan: Plan, label: str, seed: int, failed: list[tuple[str, int]]) -> None:
    for other in plan.needs.get(label, []):
        if (other, seed) in failed:
            raise RunError(f"it reads the run of {other}")


def _one_run(plan: Plan, label: str, seed: int, config: Config, clock: Clock) -> None:
    folder, name = plan.folder(label, seed), f"{label}, seed {seed}"
    if not config.stream.tasks or protects(config):  # a stream's model is looked at when its first task begins
        _take_anchor(plan, folder, config, name, clock)
    for stage in (one for one in plan.stages if one != "benchmark"):
        _make(folder, stage, config, name, clock, stale(folder, stage, config.to_dict()))


def _take_anchor(plan: Plan, folder: Path, config: Config, name: str, clock: Clock) -> None:
    """Make a run's anchor, or copy that of another run where it is the same."""
    reason = stale(folder, "anchor", config.to_dict())
    if reason and (source := _anchor_elsewhere(plan, config)):
        _copy_anchor(source, folder / "anchor")
        record_sources(folder, "anchor", config.to_dict())
        clock.say(f"{name}: anchor taken from {source} (same configuration)")
    else:
        _make(folder, "anchor", config, name, clock, reason)


def _make(folder: Path, stage: str, config: Config, name: str, clock: Clock, reason: str | None) -> None:
    """Run a stage, resume it, or keep it where `reason` is None."""
    if reason is None:
        clock.say(f"{name}: {stage} kept, its configuration and inputs are unchanged")
        return
    run = stage_function(stage)
    if stage == "train" and _can_resume(folder, config):
        clock.say(f"{name}: {stage} goes on from its last checkpoint")
        run(config, folder, resume=True)
    else:
        clock.say(f"{name}: {stage} ({reason})")
        run(config, folder, overwrite=True)
    record_sources(folder, stage, config.to_dict())


def stage_function(stage: str) -> Callable[..., Any]:
    """A stage's `run`; its module, and with it torch and lerobot, is imported when it is first needed."""
    run: Callable[..., Any] = import_module(f"vla_tune.stages.{stage.replace('-', '_')}").run
    return run


def _can_resume(folder: Path, config: Config) -> bool:
    """Whether an interrupted training of this very configuration, from this very anchor, left a checkpoint."""
    partial = folder / "train.partial"
    begun = partial / "run.json"
    goes_on = [*(partial / "checkpoints").glob("[0-9]*"), *(partial / "after").glob("*.json"), *(partial / "checkpoint").glob("state.json")]
    if not begun.is_file() or not goes_on:
        return False
    anchor = folder / "anchor" / "artifact.json"
    newer = not anchor.exists() or begun.stat().st_mtime >= anchor.stat().st_mtime
    try:
        before, now = completed(read_json(begun, forms.RunConfig)), config.to_dict()
    except UserError:  # damaged
        return False
    whole = all(before[section] == now[section] for section in ("method", "stream"))  # of these `read_by` takes a part
    return newer and whole and read_by("train", before) == read_by("train", now)


def _anchor_elsewhere(plan: Plan, config: Config) -> Path | None:
    """An anchor of another run that this one's stage would only make again."""
    return next(
        (plan.folder(*key) / "anchor" for key in plan.configs if stale(plan.folder(*key), "anchor", config.to_dict()) is None), None
    )


def _copy_anchor(source: Path, target: Path) -> None:
    """Copy a finished anchor; it appears by one rename, with the times of the copy."""
    fresh = target.with_name(f"{target.name}.partial")
    check_out(target, "anchor", overwrite=True)
    check_working(fresh)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, copy_function=shutil.copyfile)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    sync_folder(target.parent)


def _step_times(plan: Plan, clock: Clock) -> Times:
    """Step time and ratio by label, measured with its first seed, and kept like a stage."""
    firsts = {label: next(key for key in plan.configs if key[0] == label) for label in plan.labels}
    configs = {label: plan.configs[key] for label, key in firsts.items()}
    common = next(iter(configs.values()))
    asked = {**common.to_dict(), "methods": {label: own_options(asdict(config.method)) for label, config in configs.items()}}
    reason = stale(plan.out, "benchmark", asked)
    if reason is None:
        clock.say("step times kept, their configuration and inputs are unchanged")
        return {
            label: (one["step_s"], one["step_ratio"])
            for label, one in read_json(plan.out / "benchmark" / "steps.json", dict[str, forms.StepTime]).items()
        }
    clock.say(f"step times, full and the other methods in turns ({reason})")
    anchors = {label: read_artifact(plan.folder(*key) / "anchor", "anchor", "make reproduce") for label, key in firsts.items()}
    times = step_times(common, {label: (config.method, anchors[label].path) for label, config in configs.items()})
    named = {label: {"step_s": seconds, "step_ratio": ratio} for label, (seconds, ratio) in times.items()}
    inputs = {anchor.digest: anchor.as_input() for anchor in anchors.values()}
    with Draft(plan.out / "benchmark", "benchmark", overwrite=True) as draft:
        write_json(draft.path / "steps.json", named)
        draft.publish(config=asked, inputs=list(inputs.values()), metrics=named, device=common.device)
    record_sources(plan.out, "benchmark", asked)
    return times


def step_times(config: Config, methods: dict[str, tuple[MethodConfig, Path]]) -> Times:
    """The benchmark, imported when it is needed."""
    from vla_tune.stages.step_times import step_ratio

    return step_ratio(config, methods)


def _table_row(plan: Plan, label: str, seed: int, step: tuple[float | None, float | None]) -> dict[str, Any]:
    """A row of the table, from the artifacts of one run; what the study leaves out is null."""
    folder = plan.folder(label, seed)
    vqa = read_json(folder / "eval-vqa" / "report.json", FORMS["eval-vqa"]) if "eval-vqa" in plan.stages else {}
    rollout = read_json(folder / "eval-rollout" / "report.json", FORMS["eval-rollout"]) if "eval-rollout" in plan.stages else {}
    values = {name: vqa.get(name) and vqa[name]["value"] for name in ("base_accuracy", "accuracy", "retention")}
    return {
        "method": label,
        "seed": seed,
        "default": label == plan.default,
        "vqa_before": values["base_accuracy"],
        "vqa_after": values["accuracy"],
        "retention": values["retention"],
        "success": rollout.get("success") and rollout["success"]["value"],
        "episodes": rollout.get("episodes"),
        "drift": vqa.get("drift"),
        "energy_shed": mean_energy_shed(read_metrics(folder / "train" / "metrics.jsonl")),
        "step_s": step[0],
        "step_ratio": step[1],
    }


def _show(rows: list[dict[str, Any]]) -> None:
    """The table on the console."""
    header = ["method", "seed", "VQA before", "VQA after", "retention", "success", "episodes", "drift", "energy shed", "step", "step ratio"]
    cells = [
        [
            row["method"],
            str(row["seed"]),
            *(percent(row[name]) for name in ("vqa_before", "vqa_after", "retention", "success")),
            NONE if row["episodes"] is None else str(row["episodes"]),
            number(row["drift"]),
            percent(row["energy_shed"], 2),
            NONE if row["step_s"] is None else f"{row['step_s']:.3f} s",
            NONE if row["step_ratio"] is None else f"{row['step_ratio']:.2f}x",
        ]
        for row in rows
    ]
    table("plain fine-tuning and the other methods, after the same steps on the same demonstrations", header, cells)


if __name__ == "__main__":
    main()
