"""A lerobot policy on its own: its forward pass, what trains in it, and lerobot's optimizer for it."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vla_tune.console import say
from vla_tune.learners.base import Learner
from vla_tune.learners.optimizers import as_asked
from vla_tune.policies import adapt
from vla_tune.policies.compiling import compiled
from vla_tune.policies.precision import to_masters

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.policies.base import PolicyAdapter

NOISE, TIME = "flow.noise", "flow.time"
"""Where a batch holds the noise `[batch, chunk, dim]` and the times `[batch]` of its flow."""


class PolicyLearner(Learner):
    """A policy; a batch is what its forward pass takes, with the noise and the times of the flow where these are not lerobot's draws."""

    model: PreTrainedPolicy
    adapter: PolicyAdapter

    def __init__(self, policy: PreTrainedPolicy) -> None:
        self.model, self.adapter = policy, adapt(policy)

    def compute_as_configured(self) -> None:
        """Float32 weights, and a forward pass in the type that `train.precision` asks for, its activations kept or not."""
        train = self.config.train
        self.dtype = self.adapter.compute_dtype(train.precision)
        for name, count in to_masters(self.model).items():
            say(f"{count:,} of the policy's weights come in {name}; they train in float32, the forward pass computes in {self.dtype}")
        self.adapter.prepare_forward(self.dtype, checkpointing=train.activation_checkpointing)
        if train.compile:
            say(f"{compiled(self.model)} norms and MLPs are compiled when they are first used, which takes minutes")

    # Batches.

    def size(self, batch: dict[str, Any]) -> int:
        return len(batch["action"])

    def rows(self, batch: dict[str, Any], rows: slice) -> dict[str, Any]:
        """Some samples of a batch; what it does not hold for each sample stays whole."""
        size = self.size(batch)

        def part(value: Any) -> Any:
            each = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
            return value[rows] if each and len(value) == size else value

        return {key: part(value) for key, value in batch.items()}

    def count(self, batch: dict[str, Any]) -> Tensor:
        return self.adapter.loss_weight(batch)

    def with_draws(self, batch: dict[str, Any], seed: int, step: int) -> dict[str, Any]:
        """The batch with noise and times that are functions of seed, step and sample."""
        size = self.size(batch)
        noise, time = self.adapter.flow_draws(seed, step, range(size), size, batch["action"].device)
        return {**batch, NOISE: noise, TIME: time}

    # Training.

    def thaw(self) -> None:
        self.adapter.freeze_as_configured()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        own = {key: value for key, value in batch.items() if key not in (NOISE, TIME)}
        return self.adapter.loss(own, batch.get(NOISE), batch.get(TIME))

    def computing(self) -> AbstractContextManager[Any]:
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def optimizer(self, groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, float]:
        """lerobot's optimizer and schedule presets of the policy with our steps, warm-up and rate; and its clipping norm."""
        train = self.config.train
        preset = self.model.config.get_optimizer_preset()
        schedule = self.model.config.get_scheduler_preset()
        floor = schedule.decay_lr / schedule.peak_lr
        schedule = dataclasses.replace(
            schedule, peak_lr=train.lr, decay_lr=floor * train.lr, num_warmup_steps=train.warmup_steps, num_decay_steps=train.steps
        )
        return as_asked(train, preset, schedule, groups)

    def new_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those of a new policy's action expert."""
        return [(name, p) for group, ps in self.adapter.groups().items() if not group.startswith("vlm.") for name, p in ps.items()]
