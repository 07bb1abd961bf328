"""`make reproduce`: every method and seed through the stages in one process, then one report and one table.

Run again, it keeps each stage whose configuration and inputs are unchanged and redoes the rest.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_tune.artifacts import Draft, read_artifact, sync_folder, write_json
from vla_tune.cli import reported
from vla_tune.config import METHODS, Config, load_config
from vla_tune.console import say, table
from vla_tune.errors import UserError
from vla_tune.keeping import read_by, record_sources, stale
from vla_tune.report.runs import mean_energy_shed, read_json, read_metrics
from vla_tune.report.tables import number, percent


@dataclass(frozen=True)
class Plan:
    """What is asked for: a configuration for every method and seed, where the runs lie, and the pipeline's own method."""

    out: Path
    configs: dict[tuple[str, int], Config]
    default: str

    def folder(self, method: str, seed: int) -> Path:
        return self.out / method / f"seed-{seed}"

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.configs))


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
    parser = argparse.ArgumentParser(prog="python -m vla_tune.reproduce", description="The demo, end to end, and its table.")
    parser.add_argument("--methods", default="full,aegis", help="names with commas between, or all")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--pipeline", default="demo")
    parser.add_argument("--out", type=Path, default=Path("runs") / "reproduce")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args(arguments)
    with reported("the same command again"):
        reproduce(make_plan(given.pipeline, given.overrides, given.methods, given.seeds, given.out))


def make_plan(pipeline: str, overrides: list[str], methods: str, seeds: int, out: Path) -> Plan:
    """Read the configuration of every method and seed; the seeds count up from the pipeline's own.

    Raises:
        UserError: an unknown method, no seed, or a key that names an artifact from elsewhere.

    """
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    if not names or seeds < 1:
        raise UserError("--methods and --seeds: at least one method and one seed are needed")
    first = load_config(pipeline, overrides)
    for key, value in (("anchor.path", first.anchor.path), ("train.path", first.train.path)):
        if value is not None:
            raise UserError(f"{key}={value}: every run of `make reproduce` makes its own; leave it out")
    configs = {
        (name, seed): load_config(pipeline, [*overrides, f"method.name={name}", f"seed={seed}"])
        for seed in range(first.seed, first.seed + seeds)
        for name in names
    }
    return Plan(out, configs, first.method.name)


def reproduce(plan: Plan) -> list[dict[str, Any]]:
    """Everything that is not there yet, then the report and the table; returns the table's rows."""
    clock = Clock()
    clock.say(f"{len(plan.configs)} runs in {plan.out}: {', '.join(f'{name} seed {seed}' for name, seed in plan.configs)}")
    for (method, seed), config in plan.configs.items():
        _one_run(plan, method, seed, config, clock)
    times = _step_times(plan, clock)
    clock.say("report")
    folders = [plan.folder(*key) for key in plan.configs]
    stage_function("report")(folders, plan.out / "report", overwrite=True)
    rows = [_table_row(plan, method, seed, times[method]) for method, seed in plan.configs]
    write_json(plan.out / "table.json", rows)
    _show(rows)
    say(f"table: {plan.out / 'table.json'}; report: {plan.out / 'report' / 'report.html'}; {clock.minutes:.1f} minutes in all")
    return rows


def _one_run(plan: Plan, method: str, seed: int, config: Config, clock: Clock) -> None:
    folder, name = plan.folder(method, seed), f"{method}, seed {seed}"
    reason = stale(folder, "anchor", config.to_dict())
    if reason and (source := _anchor_elsewhere(plan, config)):
        _copy_folder(source, folder / "anchor")
        record_sources(folder, "anchor", config.to_dict())
        clock.say(f"{name}: anchor taken from {source} (same configuration)")
    else:
        _make(folder, "anchor", config, name, clock, reason)
    _make(folder, "train", config, name, clock, stale(folder, "train", config.to_dict()))
    for stage in ("eval-vqa", "eval-rollout"):
        _make(folder, stage, config, name, clock, stale(folder, stage, config.to_dict()))


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
    if not begun.is_file() or not any(entry.name.isdigit() for entry in (partial / "checkpoints").glob("*")):
        return False
    newer = begun.stat().st_mtime >= (folder / "anchor" / "artifact.json").stat().st_mtime
    return newer and read_by("train", read_json(begun)) == read_by("train", config.to_dict())


def _anchor_elsewhere(plan: Plan, config: Config) -> Path | None:
    """An anchor of another run that this one's stage would only make again."""
    return next(
        (plan.folder(*key) / "anchor" for key in plan.configs if stale(plan.folder(*key), "anchor", config.to_dict()) is None), None
    )


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a finished artifact; it appears by one rename, with the times of the copy."""
    fresh = target.with_name(f"{target.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, copy_function=shutil.copyfile)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    sync_folder(target.parent)


def _step_times(plan: Plan, clock: Clock) -> dict[str, tuple[float, float]]:
    """Step time and ratio by method, measured with the first seed, and kept like a stage."""
    key, config = next(iter(plan.configs.items()))
    asked = {**config.to_dict(), "methods": plan.methods}
    reason = stale(plan.out, "benchmark", asked, inputs=plan.folder(*key))
    if reason is None:
        clock.say("step times kept, their configuration and inputs are unchanged")
        return {name: (one["step_s"], one["step_ratio"]) for name, one in read_json(plan.out / "benchmark" / "steps.json").items()}
    clock.say(f"step times, full and the other methods in turns ({reason})")
    anchor = read_artifact(plan.folder(*key) / "anchor", "anchor", "make reproduce")
    times = step_times(config, plan.methods, anchor.path)
    named = {name: {"step_s": seconds, "step_ratio": ratio} for name, (seconds, ratio) in times.items()}
    with Draft(plan.out / "benchmark", "benchmark", overwrite=True) as draft:
        write_json(draft.path / "steps.json", named)
        draft.publish(config=asked, inputs=[anchor.as_input()], metrics=named, device=config.device)
    record_sources(plan.out, "benchmark", asked)
    return times


def step_times(config: Config, methods: list[str], anchor: Path) -> dict[str, tuple[float, float]]:
    """The benchmark, imported when it is needed."""
    from vla_tune.benchmark import step_ratio

    return step_ratio(config, methods, anchor)


def _table_row(plan: Plan, method: str, seed: int, step: tuple[float, float]) -> dict[str, Any]:
    """A row of the table, from the artifacts of one run."""
    folder = plan.folder(method, seed)
    vqa, rollout = read_json(folder / "eval-vqa" / "report.json"), read_json(folder / "eval-rollout" / "report.json")
    values = {name: vqa[name] and vqa[name]["value"] for name in ("base_accuracy", "accuracy", "retention")}
    return {
        "method": method,
        "seed": seed,
        "default": method == plan.default,
        "vqa_before": values["base_accuracy"],
        "vqa_after": values["accuracy"],
        "retention": values["retention"],
        "success": rollout["success"]["value"],
        "episodes": rollout["episodes"],
        "drift": vqa["drift"],
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
            str(row["episodes"]),
            number(row["drift"]),
            percent(row["energy_shed"], 2),
            f"{row['step_s']:.3f} s",
            f"{row['step_ratio']:.2f}x",
        ]
        for row in rows
    ]
    table("plain fine-tuning and the other methods, after the same steps on the same demonstrations", header, cells)


if __name__ == "__main__":
    main()
