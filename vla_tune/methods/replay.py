"""Full fine-tuning that goes on seeing some samples of every earlier task: the control that keeps data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from vla_tune.methods.base import WHOLE, Term
from vla_tune.methods.full import Full

if TYPE_CHECKING:
    from vla_tune.learners.base import StreamLearner


class Replay(Full):
    """Each step's loss is the task's plus that of samples of one earlier task, the tasks taking turns."""

    name: ClassVar[str] = "replay"
    learner: StreamLearner

    def terms(self, batch: Any) -> dict[str, Term]:
        terms = super().terms(batch)
        options = self.settings.replay
        count = self._count()
        if self.task and count and (old := self._remembered(count)) is not None:
            terms["remembered"] = Term(self.learner.loss(old), options.share)
        return terms

    def survey(self, batch: Any) -> dict[str, Tensor | int]:
        old = self._remembered(self._count()) if self.task and self._count() else None
        return super().survey(batch) if old is None else {**super().survey(batch), "remembered": self.learner.count(old)}

    def _count(self) -> int:
        return math.ceil(self.settings.replay.share * self.learner.config.train.batch_size)

    def _remembered(self, count: int) -> Any:
        """The micro-batch's part of `count` samples of an earlier task; None where it has none."""
        rows = self.part.rows(count)
        if rows.start == rows.stop:
            return None
        old = self.learner.remembered(self.steps % self.task, self.settings.replay.samples, count, self.steps)
        return old if self.part == WHOLE else self.learner.rows(old, rows)
