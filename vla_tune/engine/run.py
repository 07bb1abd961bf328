"""Training: task after task, step after step. Plain training is a stream of one task."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from vla_tune.console import progress, say
from vla_tune.engine import after, checkpoint
from vla_tune.engine.checkpoint import Place
from vla_tune.engine.log import Log, Pace, cut, open_log
from vla_tune.engine.memory import release
from vla_tune.engine.signals import Interrupted, stop_signals
from vla_tune.engine.sizes import Sizes
from vla_tune.engine.step import Step
from vla_tune.engine.trackers import Trackers, open_trackers
from vla_tune.engine.writer import Writer
from vla_tune.errors import RunError

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.engine.measure import Measure
    from vla_tune.methods.base import Method


@dataclass
class Run:
    """A training in the folder `path`.

    Args:
        measure: what is measured every `train.eval_every` steps.

    Raises:
        RunError: the loss or the gradient is no number; the newest checkpoint is named.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.

    """

    config: Config
    method: Method
    path: Path
    measure: Measure | None = None
    _from: Path | None = field(default=None, init=False)
    """The checkpoint that it goes on from."""
    _sizes: Sizes = field(default_factory=Sizes, init=False)
    _writer: Writer = field(init=False)
    _trackers: Trackers = field(init=False)
    _lowest: float = field(default=math.inf, init=False)
    """The lowest held-out loss that a checkpoint keeps."""

    @property
    def of_stream(self) -> bool:
        """Whether what there is after each task is kept."""
        return bool(self.config.stream.tasks)

    def resumed(self) -> Place:
        """Bring the model to the newest state in the folder; how far that is."""
        tasks, found = after.done(self.path), checkpoint.newest(self.path)
        self._from = found[0] if found and found[1] >= Place(tasks) else None
        place = found[1] if found and self._from else Place(tasks)
        if self._from:
            self._sizes = Sizes(checkpoint.load_model(self._from, self.method, place)["sizes"])
        elif tasks:
            after.restore(self.path, tasks - 1, self.method)
        say(f"resuming from step {place.step}{f' of task {place.task + 1}' if self.of_stream else ''}")
        cut(self.path, self.steps_at(place))
        return place

    def steps_at(self, place: Place) -> int:
        """Steps of all tasks so far."""
        return place.task * self.config.train.steps + place.step

    def learn(self, place: Place) -> None:
        """From `place` to the end of the last task, with log rows and checkpoints in the folder."""
        train = self.config.train
        opened = open_trackers(self.config, self.path, self.steps_at(place))
        with Writer(self.path, train.keep_checkpoints, keep_best=train.keep_best) as self._writer, opened as self._trackers:
            best = checkpoint.best(self.path)
            self._lowest = best[1] if best else math.inf
            for task in range(place.task, len(self.method.learner.tasks)):
                self._learn_task(task, place.step if task == place.task else 0)
                release()
        if train.keep_best and (best := checkpoint.best(self.path)):
            say(f"the lowest held-out loss, {best[1]:.4f}, was that of step {best[0]}; its checkpoint is kept")

    def _learn_task(self, task: int, first: int) -> None:
        """One task: its own seed, its own optimizer and schedule, so that every task can be gone on from."""
        method, train, learner = self.method, self.config.train, self.method.learner
        if not first:
            _seed(self.config.seed * 1000 + task if self.of_stream else self.config.seed)
            method.task, method.steps = task, 0
            method.look(task)
            method.begin(task)
        step = Step(method, *learner.optimizer(method.parameter_groups(train.lr)), parts=train.accumulate)
        if first and self._from:
            checkpoint.load_training(self._from, step, Place(task, first))
        sizes = self._sizes if first else Sizes()
        batches = learner.batches(task, first)
        title = f"task {task + 1} of {len(learner.tasks)}, {learner.tasks[task]}" if self.of_stream else "train"
        with progress(title, train.steps, "steps") as counter, stop_signals() as stopped, open_log(self.path, self._trackers) as log:
            counter.skip(first)
            pace = Pace()
            for number in range(first + 1, train.steps + 1):
                with pace.loading(), self._kept(step, Place(task, number - 1), sizes, first):
                    batch = next(batches)
                sizes.add(sum(p.numel() for p in step.trained))
                row = step(batch)
                counter.advance()
                learnt = not step.trained
                last = number == train.steps or learnt
                measuring = self.measure is not None and number % train.eval_every == 0
                logged = number % train.log_every == 0 or last or measuring or bool(stopped)
                if logged or number % train.checkpoint_every == 0:
                    self._check(step, task)
                measured: dict[str, float] = {}
                if logged:
                    counter.note(f"loss {float(row['loss']):.4f}")
                    paced = pace.told()
                    measured = self.measure() if self.measure and measuring else {}
                    self._log(log, Place(task, number), {**row, **paced, **measured})
                if learnt:
                    say(f"what the model knows already is all that this task keeps: nothing is left to train after step {number}")
                    sizes.add(0, train.steps - number)
                    break
                due = self._is_lowest(measured) or number % train.checkpoint_every == 0 or last or stopped
                if due and not (last and self.of_stream):
                    self._save(step, Place(task, number), sizes, measured.get("heldout_loss"))
                if due or measuring:
                    pace = Pace()  # writing and measuring are no part of a step
                if stopped and not last:
                    self._stop(stopped)
            learner.model.eval()
            method.end(task)
            if self.of_stream:
                self._leave(task, sizes)
            if stopped:
                self._stop(stopped)

    def _is_lowest(self, measured: dict[str, float]) -> bool:
        """Whether this held-out loss is the lowest so far, and its checkpoint is to be kept."""
        loss = measured.get("heldout_loss", math.inf)
        if not (self.config.train.keep_best and loss < self._lowest):
            return False
        self._lowest = loss
        return True

    def _save(self, step: Step, place: Place, sizes: Sizes, heldout_loss: float | None) -> None:
        self._writer.save(lambda: checkpoint.take(self.steps_at(place), place, step, {"sizes": sizes.steps}, heldout_loss))

    def _stop(self, received: list[int]) -> NoReturn:
        """Once the checkpoint is safe."""
        self._writer.wait()
        raise Interrupted(received[0])

    def _check(self, step: Step, task: int) -> None:
        """Wait for the device, and end the run where a step since the last check was no number."""
        try:
            step.finite.check()
        except FloatingPointError as error:
            where = f"task {task + 1}, " if self.of_stream else ""
            raise RunError(f"{where}{error}; {self._safe()}. Lower train.lr, or look for broken values in the dataset") from None

    def _safe(self) -> str:
        """What is left to go on from, once it is written."""
        self._writer.wait()
        done = checkpoint.finished(self.path)
        return (f"the checkpoint of step {done[-1]} is safe" if done else "no checkpoint had been written") + f" in {self.path}"

    @contextmanager
    def _kept(self, step: Step, done: Place, sizes: Sizes, first: int) -> Iterator[None]:
        """Where the next batch cannot be read, the steps that were made have a checkpoint before the run ends."""
        try:
            yield
        except RunError as error:
            self._writer.wait()
            if done.step > first and self.steps_at(done) not in checkpoint.finished(self.path):
                self._check(step, done.task)
                self._save(step, done, sizes, None)
            raise RunError(f"{error}; {self._safe()}") from None

    def _log(self, log: Log, place: Place, row: dict[str, Any]) -> None:
        task = {"task": place.task} if self.of_stream else {}
        log.write({"step": self.steps_at(place), **task, **row})

    def _leave(self, task: int, sizes: Sizes) -> None:
        """Keep what there is after a task; checkpoints in the middle of it have had their day."""
        method, learner = self.method, self.method.learner
        record = {
            "name": learner.tasks[task],
            "trainable": sizes.summary(),
            "added": method.added(),
            "router": method.router.size if method.router is not None and method.routes else 0,
            "fresh": sum(p.numel() for _, p in learner.fresh()) if task == 0 else 0,
            **method.record(task),
        }
        after.leave(self.path, task, method, record)
        self._writer.wait()
        checkpoint.drop(self.path)


def _seed(seed: int) -> None:
    """Seed every generator that a checkpoint holds: what a library draws is the same in each run, too."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
