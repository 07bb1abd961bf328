"""Every weight goes on training on task after task: the control that forgets."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vla_tune.methods.continual import Strategy


class Full(Strategy):
    """Sequential full fine-tuning."""

    name: ClassVar[str] = "full"
    routes: ClassVar[bool] = False

    def begin(self, task: int) -> None:
        self.learner.thaw()

    def added(self) -> dict[str, int]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.learner.model.named_parameters()}

    def load_state_dict(self, state: dict[str, Tensor], note: str) -> None:
        self.learner.model.load_state_dict(state, strict=False)

    def resume(self, task: int) -> None:
        self.begin(task)
