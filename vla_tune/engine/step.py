"""The training step, on one screen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.engine.reduce import reduce

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from vla_tune.methods.base import Method


@dataclass
class Step:
    """Everything that one update needs. Plain fine-tuning makes the same operations in the same order as lerobot's `update_policy`."""

    method: Method
    optimizer: Optimizer
    scheduler: LRScheduler
    clip_norm: float
    parts: int = 1
    """Micro-batches that a batch is taken in."""

    def __call__(self, batch: Any) -> dict[str, Any]:
        """One batch, one update; the step's figures."""
        began = time.perf_counter()
        method = self.method
        losses, shown, gradients = reduce(method, batch, self.parts)
        method.combine(gradients)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        lr = self.scheduler.get_last_lr()[0]
        figures = {"loss": losses["task"], "lr": lr, "grad_norm": norm}
        self.check(figures)
        method.before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        method.steps += 1
        if method.after_update():
            self.exchange(method.parameters())
        return {**figures, "step_s": time.perf_counter() - began, **shown, **method.diagnostics}

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What the optimizer changes now."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def check(self, figures: dict[str, Any]) -> None:
        """Stop before the update where the loss or the gradient's norm is no number.

        Raises:
            FloatingPointError: it is none.

        """
        loss, norm = float(figures["loss"]), float(figures["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"loss {loss}, gradient norm {norm}")

    def exchange(self, parameters: list[torch.nn.Parameter]) -> None:
        """Train these from now on; those that trained before keep their moments (a cut router is a new one), the schedule goes on."""
        kept = {id(p) for p in parameters}
        for parameter in [p for p in self.optimizer.state if id(p) not in kept]:
            del self.optimizer.state[parameter]
        self.optimizer.param_groups[0]["params"] = parameters
