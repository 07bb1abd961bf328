"""A lerobot policy on its own: its forward pass, what trains in it, and lerobot's optimizer for it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vla_tune.learners.base import Learner
from vla_tune.policies import adapt

if TYPE_CHECKING:
    import torch
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.policies.base import PolicyAdapter


class PolicyLearner(Learner):
    """A policy; a batch is what its forward pass takes."""

    model: PreTrainedPolicy
    adapter: PolicyAdapter

    def __init__(self, policy: PreTrainedPolicy) -> None:
        self.model, self.adapter = policy, adapt(policy)

    def thaw(self) -> None:
        self.adapter.freeze_as_configured()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        loss: Tensor = self.model(batch)[0]
        return loss

    def optimizer(self, groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, float]:
        """lerobot's optimizer and schedule presets of the policy with our steps, warm-up and rate; and its clipping norm."""
        train = self.config.train
        preset = self.model.config.get_optimizer_preset()
        schedule = self.model.config.get_scheduler_preset()
        floor = schedule.decay_lr / schedule.peak_lr
        schedule = dataclasses.replace(
            schedule, peak_lr=train.lr, decay_lr=floor * train.lr, num_warmup_steps=train.warmup_steps, num_decay_steps=train.steps
        )
        optimizer = dataclasses.replace(preset, lr=train.lr).build(groups)
        return optimizer, schedule.build(optimizer, train.steps), preset.grad_clip_norm

    def new_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those of a new policy's action expert."""
        return [(name, p) for group, ps in self.adapter.groups().items() if not group.startswith("vlm.") for name, p in ps.items()]
