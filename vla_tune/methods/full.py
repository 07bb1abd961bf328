"""Plain fine-tuning: every weight that the model's own library would train goes on training, on one task or on task after task."""

from __future__ import annotations

from typing import Any, ClassVar

from vla_tune.learners.base import StreamLearner
from vla_tune.methods.base import Method


class Full(Method):
    """The task gradient as it is, and what forgets. lerobot's own freezing (last block, final norm, head) stays."""

    name: ClassVar[str] = "full"

    def prepare(self) -> None:
        if self.learner.adapter is not None and not isinstance(self.learner, StreamLearner):  # a stream may train the action expert alone
            self.require_trainable_vlm()

    def begin(self, task: int) -> None:
        self.learner.thaw()

    def resume(self, task: int) -> None:
        self.begin(task)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group; two where the VLM has a learning rate of its own, the VLM's last: the log shows the first one's."""
        scale = self.settings.full.vlm_lr
        if scale == 1 or self.learner.adapter is None:
            return super().parameter_groups(lr)
        vlm = list(self.trained("vlm").values())
        inside = {id(parameter) for parameter in vlm}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in inside]
        return [{"params": rest}, {"params": vlm, "lr": lr * scale}]
