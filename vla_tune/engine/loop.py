"""The training loop: one step on one screen."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import progress
from vla_tune.engine.checkpoints import finished, save_checkpoint
from vla_tune.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import Config
    from vla_tune.methods.base import Method


class Interrupted(BaseException):
    """The run was asked to stop; a checkpoint is written. `code` is the exit code, 128 + the signal."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


@dataclass
class Loop:
    """Everything one optimisation step needs."""

    config: Config
    method: Method
    preprocess: PolicyProcessorPipeline
    batches: Iterator[dict[str, Any]]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    clip_norm: float
    accelerator: Accelerator

    def step(self) -> dict[str, Any]:
        """One batch, one update; the step's figures. The same operations in the same order as lerobot's `update_policy`."""
        began = time.perf_counter()
        batch = self.preprocess(as_floats(next(self.batches)))
        loaded = time.perf_counter()
        self.method.policy.train()
        with self.accelerator.autocast():
            loss = self.method.backward(batch, self.accelerator.backward).item()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, self.clip_norm).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"loss {loss}, gradient norm {norm}")
        lr = self.scheduler.get_last_lr()[0]
        self.method.step(self.optimizer)
        self.scheduler.step()
        figures = {"loss": loss, "lr": lr, "grad_norm": norm, "step_s": time.perf_counter() - loaded, "data_s": loaded - began}
        return {**figures, **self.method.diagnostics}

    def run(self, run: Path, first: int) -> None:
        """Steps `first + 1 .. train.steps`, with log rows and checkpoints in the folder `run`.

        Raises:
            RunError: the loss or the gradient is no number; the newest checkpoint is named.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.

        """
        train = self.config.train
        with progress("train", train.steps, "steps") as counter, stop_signals() as stopped, (run / "metrics.jsonl").open("a") as log:
            counter.skip(first)
            for step in range(first + 1, train.steps + 1):
                try:
                    row = self.step()
                except FloatingPointError as error:
                    raise RunError(_not_a_number(step, str(error), run)) from None
                counter.advance(note=f"loss {row['loss']:.4f}")
                if step % train.log_every == 0 or step == train.steps or stopped:
                    log.write(json.dumps({"step": step, **row}) + "\n")
                    log.flush()
                if step % train.checkpoint_every == 0 or step == train.steps or stopped:
                    save_checkpoint(run, step, self.method, self.optimizer, self.scheduler)
                if stopped:
                    raise Interrupted(stopped[0])


def as_floats(batch: dict[str, Any]) -> dict[str, Any]:
    """Pictures that come as uint8 (decoded videos do) in 0..1, as lerobot's training turns them."""
    pictures = {key: value.float() / 255 for key, value in batch.items() if isinstance(value, torch.Tensor) and value.dtype == torch.uint8}
    return {**batch, **pictures}


def _not_a_number(step: int, what: str, run: Path) -> str:
    done = finished(run)
    safe = f"the checkpoint of step {done[-1]} is safe" if done else "no checkpoint had been written"
    return f"step {step}: {what}; {safe} in {run}. Lower train.lr, or look for broken values in the dataset"


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them; a second one acts at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for caught in (signal.SIGINT, signal.SIGTERM):
        before[caught] = signal.signal(caught, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
