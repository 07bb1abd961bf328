"""The training step, on one screen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.engine.finite import Finite
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
    finite: Finite = field(default_factory=Finite)

    def __call__(self, batch: Any) -> dict[str, Any]:
        """One batch, one update; the step's figures, which stay on the device: nothing here waits for it."""
        method = self.method
        losses, shown, gradients = reduce(method, batch, self.parts)
        method.combine(gradients)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        lr = self.scheduler.get_last_lr()[0]
        figures = {"loss": losses["task"], "lr": lr, "grad_norm": norm}
        self.finite.note(method.steps + 1, losses["task"], norm)
        method.before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        method.steps += 1
        if method.after_update():
            self.exchange(method.parameters())
        return {**figures, **shown, **method.diagnostics}

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """What the optimizer changes now."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def exchange(self, parameters: list[torch.nn.Parameter]) -> None:
        """Train these from now on; those that trained before keep their moments (a cut router is a new one), the schedule goes on."""
        kept = {id(p) for p in parameters}
        for parameter in [p for p in self.optimizer.state if id(p) not in kept]:
            del self.optimizer.state[parameter]
        self.optimizer.param_groups[0]["params"] = parameters
