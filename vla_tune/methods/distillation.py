"""Anchor-Align (arXiv 2607.13429): on the robot's own batches, the hidden states of the VLM as it was are the target."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_tune.methods.base import Summed, Term
from vla_tune.policies import adapt


class Distillation(Summed):
    """Task plus the mean squared distance, block by block, to the hidden states of a frozen copy of the VLM."""

    name: ClassVar[str] = "distillation"

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.weight = self.settings.distillation.weight
        expert = self.adapter.expert
        # Only the prefix runs in the copy, so it shares the expert; its own state projection no token of interest attends to.
        self._teacher = adapt(copy.deepcopy(self.adapter.policy, {id(expert): expert}))

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        with self.adapter.taps() as taps:
            task = self.task_loss(batch)
        with torch.no_grad():
            target = self._teacher.batch_prefix(batch)
        mask = taps.mask
        assert mask is not None
        blocks = [
            torch.where(mask[..., None], now.float() - then.float(), 0).square().sum()
            for now, then in zip(taps.states, target.states, strict=True)
        ]
        return self.summed(task, distance=torch.stack(blocks).mean() / (mask.sum() * self.adapter.width))

    def survey(self, batch: dict[str, Any]) -> dict[str, Tensor | int]:
        """The tokens that count are known once the prefix is embedded, so the teacher's pass is made twice."""
        mask = self._teacher.batch_prefix(batch).mask
        assert mask is not None
        return {**super().survey(batch), "distance": mask.sum()}
