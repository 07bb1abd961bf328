"""The `train` stage: fine-tune a policy on demonstrations by one method."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.anchors.artifact import Anchor, load_anchor
from vla_tune.artifacts.folder import Artifact, Draft, read_artifact, write_json
from vla_tune.config import departures
from vla_tune.console import say
from vla_tune.engine.checkpoints import begun_with, cut_metrics, finished, load_checkpoint, reopen
from vla_tune.engine.export import export
from vla_tune.engine.heldout import heldout_loss
from vla_tune.engine.loop import Loop
from vla_tune.engine.plan import show_plan
from vla_tune.engine.setup import make_loader, make_memory, make_optimizer, make_start, show_groups
from vla_tune.errors import UserError
from vla_tune.methods import make_method, method_class
from vla_tune.methods.wise_ft import finished_run
from vla_tune.reports.runs import logged, mean, mean_energy_shed, median_step_s, read_metrics
from vla_tune.stages import stream
from vla_tune.stages.downloads import fetches, show_fetches

if TYPE_CHECKING:
    from vla_tune.config import Config

FREE_ON_RESUME = ("steps", "log_every", "checkpoint_every", "path")
"""Keys of `train` that may change between a run and its resumption."""


def run(config: Config, run: Path, *, overwrite: bool = False, resume: bool = False, plan: bool = False) -> Artifact | None:
    """Train, in `RUN/train.partial`, and publish `RUN/train`.

    Args:
        resume: go on from the newest complete checkpoint; also extends a finished run whose `train.steps` grew.
        plan: print what would be fetched, what would be trained and the memory it takes, and stop (returns None).

    Raises:
        UserError: wrong input. RunError: it failed while running. Interrupted: it was asked to stop.

    """
    if config.stream.tasks:
        if plan and not _ready(config):
            return None
        return stream.train(config, run, overwrite=overwrite, resume=resume, plan=plan)
    began, target = time.monotonic(), run / "train"
    if plan and not _ready(config):
        return None
    first = 0 if plan else _first_step(config, run, overwrite=overwrite, resume=resume)
    anchor, inputs = _anchor(config, run)
    inputs += _tuned(config)
    start = make_start(config)
    memory = make_memory(config, start.base_vlm)
    method = make_method(config.method.name, start.policy, anchor=anchor, settings=config.method, memory=memory)
    show_groups(method, config.train.lr)
    if plan:
        show_plan(config, start, method)
        return None
    draft = Draft(target, "train", overwrite=overwrite or resume, keep=first > 0)
    if not first:
        write_json(draft.path / "run.json", config.to_dict())
    if method.trains:
        _make_loop(config, start, method, draft.path, first).run(draft.path, first)
    else:
        (draft.path / "metrics.jsonl").touch()
    export(method, start, draft.path, target)
    metrics = {**summary(draft.path / "metrics.jsonl"), "heldout_loss": heldout_loss(config, start)}
    # What was done before a resumption is known from its steps alone.
    metrics["seconds"] = time.monotonic() - began + (first * (metrics["step_s"] + metrics["data_s"]) if first else 0)
    return draft.publish(config=config.to_dict(), inputs=inputs, metrics=metrics, device=config.device)


def _ready(config: Config) -> bool:
    """Check what can be checked without a download, and tell what would be downloaded; whether nothing of it is for training."""
    from vla_tune.simulators.registry import simulator_of, tasks_of

    if config.rollout.tasks:
        tasks_of(simulator_of(config.rollout.tasks), config.rollout.tasks)
    ready = show_fetches(fetches(config))
    if not ready:
        say("names and tasks are sound; memory can be planned once what training reads is here")
    return ready


def _make_loop(config: Config, start: Any, method: Any, folder: Path, first: int) -> Loop:
    """lerobot's parts under accelerate, put back to step `first` where that is not 0."""
    import torch
    from accelerate import Accelerator
    from lerobot.utils.utils import cycle

    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=config.device == "cpu")
    if accelerator.num_processes > 1:
        raise UserError("train runs in one process; start it without torchrun or accelerate launch")
    optimizer, scheduler, clip_norm = make_optimizer(config, method)
    loader = make_loader(config, start.dataset, first)
    _, optimizer, loader, scheduler = accelerator.prepare(start.policy, optimizer, loader, scheduler)
    torch.manual_seed(config.seed)
    if first:
        load_checkpoint(folder, first, method, optimizer, scheduler)
    return Loop(config, method, start.processors[0], cycle(loader), optimizer, scheduler, clip_norm, accelerator)


def _first_step(config: Config, run: Path, *, overwrite: bool, resume: bool) -> int:
    """The number of steps already taken; a run to resume is put into the state of its newest checkpoint."""
    target, partial = run / "train", run / "train.partial"
    if resume and not finished(partial) and target.exists():
        read_artifact(target, "train", "vla-tune train")
        _check_same(config, target)
        _reopen(config, target, partial)
    if resume:
        steps = finished(partial)
        if not steps:
            raise UserError(f"--resume: there is no checkpoint in {partial}; start without --resume")
        _check_same(config, partial)
        if steps[-1] > config.train.steps:
            raise UserError(f"--resume: {partial} is at step {steps[-1]} already; give train.steps={steps[-1]} or more")
        cut_metrics(partial / "metrics.jsonl", steps[-1])
        say(f"resuming from step {steps[-1]}")
        return steps[-1]
    if target.exists() and not overwrite:
        raise UserError(
            f"{target} exists already; give --overwrite to replace it, --resume with more train.steps to extend it, or another --out"
        )
    if finished(partial) and not overwrite:
        raise UserError(
            f"{partial} holds an unfinished run; give --resume to go on from step {finished(partial)[-1]}, or --overwrite to start again"
        )
    return 0


def _reopen(config: Config, target: Path, partial: Path) -> None:
    """Copy a finished run's checkpoints and rows into the working folder, to extend it."""
    steps = finished(target)
    if not steps:
        raise UserError(f"--resume: {target} is finished and its checkpoints are gone; give --overwrite to train again")
    if steps[-1] >= config.train.steps:
        raise UserError(
            f"--resume: {target} is finished at step {steps[-1]}; raise train.steps to extend it, or give --overwrite to train again"
        )
    reopen(target, partial, "checkpoints")


def _check_same(config: Config, folder: Path) -> None:
    """A resumed run must be the same run: every key that shapes it is compared."""
    shaping = ("seed", "policy", "data", "method", "train", "anchor")
    changed = departures(config, begun_with(folder), shaping, [f"train.{key}" for key in FREE_ON_RESUME])
    if changed:
        raise UserError(f"--resume: {changed}; resume with the same values, or give --overwrite to start again")


def _anchor(config: Config, run: Path) -> tuple[Anchor | None, list[dict[str, str]]]:
    """The anchor that `anchor.path` or the run holds; None where the method needs none and there is none."""
    if not method_class(config.method.name).needs_anchor:
        return None, []
    anchor = load_anchor(config.anchor.path or run / "anchor")
    return anchor, [anchor.artifact.as_input()]


def _tuned(config: Config) -> list[dict[str, str]]:
    """The finished run that a method without training works on; it must have started as this one does."""
    if method_class(config.method.name).trains:
        return []
    artifact = finished_run(config.method)
    changed = departures(config, artifact.config, ("policy", "data"), ["data.cache_mb"])
    if changed:
        raise UserError(f"method.wise_ft.path={artifact.path}: that run is another start: {changed}; give the same values")
    return [artifact.as_input()]


def summary(metrics: Path) -> dict[str, Any]:
    """The run's headline figures from its log rows, None where there is none: last loss, median step time, mean energy shed."""
    rows = read_metrics(metrics)
    last = rows[-1] if rows else {"step": 0, "loss": None}
    return {
        "steps": last["step"],
        "loss": last["loss"],
        "step_s": median_step_s(rows),
        "data_s": statistics.median(row["data_s"] for row in rows) if rows else None,
        "energy_shed": mean_energy_shed(rows),
        "projected": mean(logged(rows, "projected")),
    }
