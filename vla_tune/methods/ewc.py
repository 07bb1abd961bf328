"""Elastic weight consolidation (arXiv 1612.00796): L2-SP, with each weight held as tightly as the answers depend on it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vla_tune.console import progress
from vla_tune.methods.l2sp import L2SP
from vla_tune.vlm.batches import answer_loss


class EWC(L2SP):
    """The importance is the diagonal of the empirical Fisher information: the mean squared gradient of single answers' losses."""

    name: ClassVar[str] = "ewc"
    needs_memory: ClassVar[bool] = True

    def prepare(self) -> None:
        super().prepare()
        self.require_answers()
        self.require_questions(self.settings.ewc.samples)
        self.weight = self.settings.ewc.weight
        self._fisher = self._importance(self.settings.ewc.samples)

    def squared(self, name: str, moved: Tensor) -> Tensor:
        return (self._fisher[name] * moved.square()).sum()

    def _importance(self, samples: int) -> dict[str, Tensor]:
        """Over the first questions, one at a time: the square of a batch's mean gradient would not do."""
        trained = self.trained("vlm")
        fisher = {name: torch.zeros_like(p) for name, p in trained.items()}
        self.model.eval()
        with progress("fisher information", samples, "questions") as counter:
            for row in range(samples):
                loss = answer_loss(self.adapter.vlm, self.memory.at([row]))
                gradients = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
                for total, gradient in zip(fisher.values(), gradients, strict=True):
                    total.addcmul_(gradient, gradient, value=1 / samples)
                counter.advance()
        return fisher
