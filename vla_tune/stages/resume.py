"""What lies in a run's folder before training begins: nothing, an unfinished run, or a finished one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.claim import settle
from vla_tune.artifacts.folder import read_artifact
from vla_tune.config import departures
from vla_tune.engine import after, checkpoint, log, trackers
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.config import Config

SHAPING = ("seed", "policy", "data", "method", "train", "anchor", "stream")
"""The sections of the configuration that shape a run."""
FREE = (
    *("train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_best", "train.path"),
    *("train.trackers", "train.eval_every", "train.eval_questions"),
    *("policy.trust", "data.cache_mb", "data.workers", "stream.folder", "stream.merged"),
)
"""Keys that may change between a run and its resumption; `train.steps` may grow, or tasks be added to a stream's end."""
BEGUN = "run.json"
KEPT = (BEGUN, log.FILE, after.FOLDER, checkpoint.FOLDER, trackers.FOLDER)
"""What a run that goes on needs of its working folder; what an export that was killed has left there goes."""
AGAIN = "give --overwrite to train again"


def check_begun(config: Config, run: Path, *, overwrite: bool, resume: bool) -> bool:
    """Check that the run may begin, or go on; whether it extends a finished one.

    Raises:
        UserError: something is there that would be lost, there is nothing to go on from, or that is another run.

    """
    target, partial = run / "train", run / "train.partial"
    settle(target, "train")
    unfinished = is_begun(partial)
    if resume and unfinished:
        _check_same(config, begun_with(partial))
        _check_steps(config, partial)
    elif resume and target.exists():
        _check_same(config, read_artifact(target, "train", "vla-tune train").config)
        _check_grown(config, target)
        return True
    elif resume:
        raise UserError(f"--resume: there is no checkpoint in {partial}; start without --resume")
    elif target.exists() and not overwrite:
        grown = "more tasks" if config.stream.tasks else "more train.steps"
        raise UserError(f"{target} exists already; give --overwrite to replace it, --resume with {grown} to extend it, or another --out")
    elif unfinished and not overwrite:
        reached = f"task {after.done(partial) + 1}" if config.stream.tasks else f"step {checkpoint.finished(partial)[-1]}"
        raise UserError(f"{partial} holds an unfinished run; give --resume to go on from {reached}, or --overwrite to start again")
    return False


def is_begun(partial: Path) -> bool:
    """Whether a working folder has a state to go on from."""
    return bool(checkpoint.finished(partial) or after.done(partial))


def begun_with(partial: Path) -> dict[str, Any]:
    """The configuration that an unfinished run began with, as the working folder has it."""
    try:
        config: dict[str, Any] = json.loads((partial / BEGUN).read_text())
    except (OSError, ValueError):
        raise UserError(f"--resume: {partial / BEGUN} is missing or damaged; {AGAIN}") from None
    return config


def reopen(run: Path) -> None:
    """Copy a finished run's states and rows into the working folder, to extend it."""
    target, partial = run / "train", run / "train.partial"
    shutil.rmtree(partial, ignore_errors=True)
    fresh = partial.with_name(f"{partial.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for states in (after.FOLDER, checkpoint.FOLDER):
        if (target / states).is_dir():
            shutil.copytree(target / states, fresh / states)
    for name in (BEGUN, log.FILE):
        shutil.copy2(target / name, fresh / name)
    fresh.rename(partial)


def _check_same(config: Config, earlier: dict[str, Any]) -> None:
    """A resumed run must be the same run: every key that shapes it is compared."""
    free = [*FREE, "stream.tasks"] if config.stream.tasks else [*FREE, "train.steps"]
    if config.stream.tasks:
        _check_tasks(config, earlier)
    if changed := departures(config, earlier, SHAPING, free):
        raise UserError(f"--resume: {changed}; resume with the same values, or give --overwrite to start again")


def _check_tasks(config: Config, earlier: dict[str, Any]) -> None:
    now = config.to_dict()["stream"]["tasks"]
    before = earlier["stream"]["tasks"]
    if now[: len(before)] != before:
        names = ", ".join(task["name"] for task in before)
        raise UserError(f"--resume: the stream began with other tasks ({names}); new ones go to its end")
    if len(now) > len(before) and config.method.name == "moe_adapters":
        raise UserError(
            "--resume: moe_adapters lays out its experts for all tasks at the start; give --overwrite to train the longer stream"
        )


def _check_steps(config: Config, partial: Path) -> None:
    steps = checkpoint.finished(partial)
    if not config.stream.tasks and steps[-1] > config.train.steps:
        raise UserError(f"--resume: {partial} is at step {steps[-1]} already; give train.steps={steps[-1]} or more")


def _check_grown(config: Config, target: Path) -> None:
    """A finished run goes on where there is more to learn."""
    if config.stream.tasks:
        if after.done(target) >= len(config.stream.tasks):
            raise UserError(f"--resume: {target} is finished; add tasks to the end of stream.tasks, or {AGAIN}")
        return
    steps = checkpoint.finished(target)
    if not steps:
        raise UserError(f"--resume: {target} is finished and its checkpoints are gone; {AGAIN}")
    if steps[-1] >= config.train.steps:
        raise UserError(f"--resume: {target} is finished at step {steps[-1]}; raise train.steps to extend it, or {AGAIN}")
