"""Full fine-tuning that goes on seeing some samples of every earlier task: the control that keeps data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from vla_tune.methods.base import Term
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
        count = math.ceil(options.share * self.learner.config.train.batch_size)
        if self.task and count:
            old = self.learner.remembered(self.steps % self.task, options.samples, count, self.steps)
            terms["remembered"] = Term(self.learner.loss(old), options.share)
        return terms
