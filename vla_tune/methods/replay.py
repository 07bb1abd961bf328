"""Full fine-tuning that goes on seeing some samples of every earlier task: the control that keeps data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from vla_tune.methods.sequential import Full

if TYPE_CHECKING:
    from vla_tune.learners.base import Batch


class Replay(Full):
    """Each step's loss is the task's plus that of samples of one earlier task, the tasks taking turns."""

    name: ClassVar[str] = "replay"

    def begin(self, task: int) -> None:
        super().begin(task)
        self._drawn = 0

    def loss(self, task: int, batch: Batch) -> Tensor:
        loss = super().loss(task, batch)
        share = self.settings.replay.share
        count = math.ceil(share * self.learner.config.train.batch_size)
        if task and count:
            old = self.learner.remembered(self._drawn % task, self.settings.replay.samples, count, self._drawn)
            loss = loss + share * super().loss(task, old)
        self._drawn += 1
        return loss

    def note(self) -> str:
        return str(self._drawn)

    def load_state_dict(self, state: dict[str, Tensor], note: str) -> None:
        super().load_state_dict(state, note)
        self._noted = int(note)

    def resume(self, task: int) -> None:
        super().resume(task)
        self._drawn = self._noted
