"""Learning a stream: task after task, each step on one screen; resumes in the middle of a task, and takes further tasks at the end."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.artifacts.folder import sync_folder, sync_tree
from vla_tune.console import progress, say
from vla_tune.engine.checkpoints import loaded
from vla_tune.engine.loop import Interrupted, stop_signals
from vla_tune.errors import RunError
from vla_tune.experts.tasks import NONE, TaskRouter
from vla_tune.learners import open_learner
from vla_tune.methods import strategy_class

if TYPE_CHECKING:
    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import Config
    from vla_tune.learners.base import Learner
    from vla_tune.methods.continual import Strategy

AFTER = "after"
"""The folder of what there was after each task: `<task>.safetensors` and `<task>.json`."""
AGAIN = "give --overwrite to train again"


@dataclass
class Stream:
    """A model on its way through the tasks."""

    config: Config
    learner: Learner
    router: TaskRouter
    strategy: Strategy

    @classmethod
    def open(cls, config: Config, anchor: Anchor | None = None) -> Stream:
        """The model that the stream starts from, made ready for the strategy."""
        torch.manual_seed(config.seed)
        learner = open_learner(config)
        router = TaskRouter(config.stream.router_width)
        strategy = strategy_class(config.method.name)(learner, config.method, router, config.train.steps, anchor)
        return cls(config, learner, router, strategy)

    def learn(self, folder: Path, task: int, step: int) -> None:
        """From `step` of `task` to the end of the last task, with log rows and checkpoints in `folder`."""
        for number in range(task, len(self.learner.tasks)):
            self._learn_task(folder, number, step if number == task else 0)

    def _learn_task(self, folder: Path, task: int, step: int) -> None:
        """One task: its own seed, its own optimizer and schedule, so that every task can be gone on from."""
        strategy, train = self.strategy, self.config.train
        if not step:
            torch.manual_seed(self.config.seed * 1000 + task)
            self._look(task)
            strategy.begin(task)
        sizes = _Sizes.read(folder) if step else _Sizes()
        optimizer, scheduler, clip_norm = self.learner.optimizer(strategy.parameters())
        if step:
            load_checkpoint(folder, optimizer, scheduler)
        batches = self.learner.batches(task, step)
        title = f"task {task + 1} of {len(self.learner.tasks)}, {self.learner.tasks[task]}"
        with progress(title, train.steps, "steps") as counter, stop_signals() as stopped, (folder / "metrics.jsonl").open("a") as log:
            counter.skip(step)
            for now in range(step + 1, train.steps + 1):
                began = time.perf_counter()
                batch = next(batches)
                loaded = time.perf_counter()
                loss = strategy.loss(task, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                parameters = optimizer.param_groups[0]["params"]
                norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm).item()
                if not (math.isfinite(loss.item()) and math.isfinite(norm)):
                    raise RunError(f"task {task + 1}, step {now}: loss {loss.item()}, gradient norm {norm}; lower train.lr")
                rate = scheduler.get_last_lr()[0]
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                strategy.after_update(task)
                row = {"loss": loss.item(), "lr": rate, "grad_norm": norm, "step_s": time.perf_counter() - loaded, "data_s": loaded - began}
                sizes.add(sum(p.numel() for p in parameters))
                if strategy.after_step(task, now):
                    _exchange(optimizer, strategy.parameters())
                counter.advance(note=f"loss {row['loss']:.4f}")
                place = task * train.steps + now
                learnt = not optimizer.param_groups[0]["params"]  # what the model knows already is all that this task keeps
                if now % train.log_every == 0 or now == train.steps or stopped or learnt:
                    log.write(json.dumps({"step": place, "task": task, **row, **strategy.diagnostics}) + "\n")
                    log.flush()
                if learnt:
                    say(f"what the model knows already is all that this task keeps: nothing is left to train after step {now}")
                    sizes.add(0, train.steps - now)
                    break
                if now < train.steps and (now % train.checkpoint_every == 0 or stopped):
                    self._save(folder / "checkpoint", task, now, sizes, optimizer, scheduler)
                if stopped and now < train.steps:
                    raise Interrupted(stopped[0])
            strategy.end(task)
            self._leave(folder, task, sizes)
            if stopped:
                raise Interrupted(stopped[0])

    def _look(self, task: int) -> None:
        """Learn to tell the task from the others, by how the model as it was sees it."""
        if not self.strategy.routes:
            return
        with self.strategy.routed(None):
            if not task and (reference := self.learner.reference_features()) is not None:
                self.router.add(NONE, reference)
            self.router.add(task, self.learner.task_features(task))

    def _leave(self, folder: Path, task: int, sizes: _Sizes) -> None:
        """Write what there is after a task; checkpoints in the middle of it have had their day."""
        record = {
            "name": self.learner.tasks[task],
            "trainable": sizes.summary(),
            "added": self.strategy.added(),
            "router": self.router.size if self.strategy.routes else 0,
            "fresh": sum(p.numel() for _, p in self.learner.fresh()) if task == 0 else 0,
            **self.strategy.record(task),
        }
        fresh = folder / f"{AFTER}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self._write(fresh, str(task), {"note": self.strategy.note(), "record": record})
        sync_tree(fresh)
        (folder / AFTER).mkdir(exist_ok=True)
        for part in sorted(fresh.iterdir(), reverse=True):  # the tensors first: where the note is, all is
            part.rename(folder / AFTER / part.name)
        fresh.rmdir()
        sync_folder(folder / AFTER)
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)

    def _save(self, final: Path, task: int, step: int, sizes: _Sizes, optimizer: Any, scheduler: Any) -> None:
        """A checkpoint in the middle of a task, in place of the last one."""
        from lerobot.common.train_utils import save_training_state

        fresh, old = final.with_name("checkpoint.new"), final.with_name("checkpoint.old")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self._write(fresh, "state", {"task": task, "step": step, "note": self.strategy.note(), "sizes": sizes.steps})
        save_training_state(fresh, step, optimizer, scheduler)
        sync_tree(fresh)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(final.parent)

    def _write(self, folder: Path, name: str, note: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        router = self.router.state_dict() if self.strategy.routes else {}
        state = {**self.strategy.state_dict(), **{f"tasks:{key}": value for key, value in router.items()}}
        save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps({**note, "scales": self.learner.scales()}))

    def restore(self, folder: Path, name: str) -> dict[str, Any]:
        """Go back to what `_write` wrote; its note."""
        from safetensors.torch import load_file

        with loaded(f"{folder / name}:", AGAIN):
            state = load_file(folder / f"{name}.safetensors")
            note: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
            if self.strategy.routes:
                self.router.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("tasks:")})
            self.strategy.load_state_dict({key: value for key, value in state.items() if not key.startswith("tasks:")}, note["note"])
            if note.get("scales"):  # states of before that time have none
                self.learner.rescale(note["scales"])
        return note


class _Sizes:
    """How many parameters trained at each step of a task: `[parameters, steps]` runs."""

    def __init__(self, steps: list[list[int]] | None = None) -> None:
        self.steps = steps or []

    @classmethod
    def read(cls, folder: Path) -> _Sizes:
        return cls(json.loads((folder / "checkpoint" / "state.json").read_text())["sizes"])

    def add(self, count: int, steps: int = 1) -> None:
        if not self.steps or self.steps[-1][0] != count:
            self.steps.append([count, 0])
        self.steps[-1][1] += steps

    def summary(self) -> dict[str, float]:
        """At the first step, at the last, and the mean over steps."""
        total = sum(steps for _, steps in self.steps)
        return {
            "first": self.steps[0][0],
            "last": self.steps[-1][0],
            "mean": sum(count * steps for count, steps in self.steps) / total,
        }


def _exchange(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    """Train these from now on; those of them that trained before keep their moments (a cut router is a new one), the schedule goes on."""
    kept = {id(p) for p in parameters}
    for parameter in [p for p in optimizer.state if id(p) not in kept]:
        del optimizer.state[parameter]
    optimizer.param_groups[0]["params"] = parameters


def load_checkpoint(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put optimizer, schedule and random generators back to those of the checkpoint."""
    from lerobot.common.train_utils import load_training_state

    with loaded(f"{folder / 'checkpoint'}:", AGAIN):
        load_training_state(folder / "checkpoint", optimizer, scheduler)


def begun(folder: Path) -> bool:
    """Whether there is a state to go on from; a checkpoint that a new one was just about to replace is put back."""
    checkpoint, old = folder / "checkpoint", folder / "checkpoint.old"
    if old.is_dir() and not checkpoint.exists():
        old.rename(checkpoint)
    return bool(done(folder)) or checkpoint.is_dir()


def done(folder: Path) -> int:
    """How many tasks are finished there."""
    return len(list((folder / AFTER).glob("*.json")))


def go_on(stream: Stream, folder: Path) -> tuple[int, int]:
    """Bring a stream to the newest state in a folder; the task and the step in it that it has reached."""
    tasks, checkpoint = done(folder), folder / "checkpoint"
    if (checkpoint / "state.json").is_file():
        note = stream.restore(checkpoint, "state")
        if note["task"] == tasks:
            stream.strategy.resume(tasks)
            say(f"resuming from step {note['step']} of task {tasks + 1}")
            return tasks, int(note["step"])
    if tasks:
        stream.restore(folder / AFTER, str(tasks - 1))
        say(f"resuming after task {tasks}")
    return tasks, 0
