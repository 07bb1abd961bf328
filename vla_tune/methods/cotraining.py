"""Co-training: the VLM's own questions beside every batch, as RT-2 (arXiv 2307.15818) mixes web data with the robot's."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vla_tune.methods.base import Method, Summed
from vla_tune.vlm.batches import answer_loss


class Cotraining(Summed):
    """Task plus the cross-entropy of the answers to a few questions, in the VLM's stock forward."""

    name: ClassVar[str] = "cotraining"
    needs_memory: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.require_answers()
        self.weight = self.settings.cotraining.weight

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {**super().losses(batch), "answers": step_answers(self, batch, self.settings.cotraining.share)}


def step_answers(method: Method, batch: dict[str, Any], share: float) -> Tensor:
    """The answers' loss on this step's questions: a share of the batch's size, at least one."""
    count = max(1, round(share * len(batch["action"])))
    return answer_loss(method.adapter.vlm, method.memory.draw(method.steps, count))
