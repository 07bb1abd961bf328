"""Co-training: the VLM's own questions beside every batch, as RT-2 (arXiv 2307.15818) mixes web data with the robot's."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vla_tune.methods.answers import Answers, share_of
from vla_tune.methods.base import Summed, Term


class Cotraining(Summed):
    """Task plus the cross-entropy of the answers to a few questions, in the VLM's stock forward."""

    name: ClassVar[str] = "cotraining"
    needs_memory: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.require_answers()
        self.weight = self.settings.cotraining.weight
        self._answers = Answers(self)

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        task = self.task_loss(batch)
        answers = self._answers.loss(share_of(self, batch, self.settings.cotraining.share))
        return self.summed(task) if answers is None else self.summed(task, answers=answers)

    def survey(self, batch: dict[str, Any]) -> dict[str, Tensor | int]:
        return {**super().survey(batch), "answers": self._answers.tokens(share_of(self, batch, self.settings.cotraining.share))}
