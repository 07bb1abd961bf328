"""L2-SP (arXiv 1802.01483): weight decay towards the starting point instead of zero."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_tune.methods.base import Summed, Term


class L2SP(Summed):
    """Task plus half the squared distance of the VLM's trained weights to those it started with."""

    name: ClassVar[str] = "l2sp"

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.weight = self.settings.l2sp.weight
        self._start = {name: p.detach().clone() for name, p in self.trained("vlm").items()}

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        squares = [self.squared(name, p - self._start[name]) for name, p in self.trained("vlm").items()]
        return self.summed(self.task_loss(batch), distance=torch.stack(squares).sum() / 2)

    def squared(self, _name: str, moved: Tensor) -> Tensor:
        """The squared length of what a parameter has moved by."""
        return moved.square().sum()
