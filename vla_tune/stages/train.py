"""The `train` stage: fine-tune a model by one method, on one task or on a stream of tasks."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import Artifact, Draft, write_json
from vla_tune.config import departures
from vla_tune.console import say
from vla_tune.data.identity import check_identity, keep_identity
from vla_tune.engine.checkpoint import Place
from vla_tune.engine.disk import check_disk
from vla_tune.engine.measure import measure_of
from vla_tune.engine.plan import show_groups
from vla_tune.engine.run import Run
from vla_tune.errors import UserError, out_of_memory_told
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.methods import method_class
from vla_tune.methods.wise_ft import finished_run
from vla_tune.policies.devices import on_device
from vla_tune.preflight.look import preflight
from vla_tune.reports.runs import logged, mean, mean_energy_shed, median_step_s, read_metrics
from vla_tune.stages import stream
from vla_tune.stages.opening import open_anchor, open_method
from vla_tune.stages.planning import show_plan
from vla_tune.stages.resume import AGAIN, BEGUN, KEPT, check_begun, reopen

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.methods.base import Method

MEMORY_KEYS = (
    "train.accumulate (must divide train.batch_size), train.activation_checkpointing=true, train.precision=bfloat16, "
    "or a smaller train.batch_size"
)


def run(config: Config, run: Path, *, overwrite: bool = False, resume: bool = False, plan: bool = False) -> Artifact | None:
    """Train, in `RUN/train.partial`, and publish `RUN/train`.

    Args:
        resume: go on from the newest state; also extends a finished run whose `train.steps` grew, or whose stream has more tasks.
        plan: print what would be fetched, what would be trained and the memory it takes, and stop (returns None). Nothing is
            downloaded, recorded or written for it, and no anchor is needed.

    Raises:
        UserError: wrong input. RunError: it failed while running. Interrupted: it was asked to stop.

    """
    began, config = time.monotonic(), on_device(config)
    if plan:
        show_plan(config, run)
        return None
    if config.stream.tasks:
        stream.warn_of_left_out(config, "train")
    extends = check_begun(config, run, overwrite=overwrite, resume=resume)
    dataset = preflight(config)
    if dataset and resume and not (extends and config.stream.tasks):  # a stream's new tasks come with new demonstrations
        check_identity(run / ("train" if extends else "train.partial"), dataset, AGAIN)
    anchor = open_anchor(config, run)
    inputs = [anchor.artifact.as_input()] if anchor else []
    inputs += _tuned(config)
    method = open_method(config, anchor)  # what is wrong with it is told before anything of an earlier run is touched
    if not config.stream.tasks:
        show_groups(method, config.train.lr)
    measure = measure_of(config, method)
    check_disk(config, method, run)
    method.learner.open_data()
    if extends:
        reopen(run)
    draft = Draft(run / "train", "train", overwrite=overwrite or resume, keep=KEPT if resume else ())
    if done := draft.finished(config.to_dict(), inputs):
        return done
    training = Run(config, method, draft.path, measure)
    place = training.resumed() if resume else Place()
    write_json(draft.path / BEGUN, config.to_dict())
    if dataset:
        keep_identity(draft.path, dataset)
    if method.trains:
        with out_of_memory_told(config.device, MEMORY_KEYS):
            training.learn(place)
    else:
        (draft.path / "metrics.jsonl").touch()
    method.finish(draft.path)
    with method.as_stock():
        method.learner.save(draft.path, draft.target)
    metrics = stream.finish(method, draft) if config.stream.tasks else _metrics(method, draft.path)
    # What was done before a resumption is known from its steps alone.
    earlier = training.steps_at(place) * (metrics["step_s"] + (metrics.get("data_s") or 0)) if training.steps_at(place) else 0
    metrics["seconds"] = time.monotonic() - began + earlier
    return draft.publish(config=config.to_dict(), inputs=inputs, metrics=metrics, device=config.device)


def _tuned(config: Config) -> list[dict[str, str]]:
    """The finished run that a method without training works on; it must have started as this one does."""
    if config.stream.tasks or method_class(config.method.name).trains:
        return []
    artifact = finished_run(config.method)
    changed = departures(config, artifact.config, ("policy", "data"), ["data.cache_mb"])
    if changed:
        raise UserError(f"method.wise_ft.path={artifact.path}: that run is another start: {changed}; give the same values")
    return [artifact.as_input()]


def _metrics(method: Method, folder: Path) -> dict[str, Any]:
    """What the artifact tells of plain training."""
    assert isinstance(method.learner, Demonstrations)
    heldout = method.learner.heldout_loss()
    if heldout is not None:
        say(f"held-out action loss: {heldout:.4f}")
    return {**summary(folder / "metrics.jsonl"), "heldout_loss": heldout}


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
