"""What the methods share that freeze a model and add something to it for each task of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_tune.experts.tasks import NONE, TaskRouter
from vla_tune.methods.base import Method

if TYPE_CHECKING:
    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import MethodConfig
    from vla_tune.learners.base import StreamLearner
    from vla_tune.vqa.replay import ReplayQuestions

ROUTER = "tasks:"
"""What the names of the task router's tensors start with."""


class Continual(Method):
    """The model is frozen but for parts that were never trained (a new action expert): those train with the first task.

    router: tells samples apart by task; before a task is learnt, it learns what the task looks like to the model as it was.
    """

    learner: StreamLearner
    router: TaskRouter
    routes = True

    def __init__(
        self, learner: StreamLearner, settings: MethodConfig, anchor: Anchor | None = None, memory: ReplayQuestions | None = None
    ) -> None:
        self.fresh = dict(learner.fresh())
        self.router = TaskRouter(learner.config.stream.router_width)
        super().__init__(learner, settings, anchor, memory)

    def look(self, task: int) -> None:
        if not self.routes:
            return
        with self.routed(None):
            if not task and (reference := self.learner.reference_features()) is not None:
                self.router.add(NONE, reference)
            self.router.add(task, self.learner.task_features(task))

    def train_fresh(self, *, on: bool) -> None:
        """Train the new parts, or no longer."""
        for parameter in self.fresh.values():
            parameter.requires_grad = on

    def state_dict(self) -> dict[str, Tensor]:
        router = self.router.state_dict() if self.routes else {}
        fresh = {f"fresh:{name}": p.detach() for name, p in self.fresh.items()}
        return {**fresh, **{f"{ROUTER}{name}": tensor for name, tensor in router.items()}}

    def load_state_dict(self, state: dict[str, Tensor], note: str = "{}") -> None:
        """Go back to a `state_dict`; nothing trains until the next `begin` or `resume`."""
        if self.routes:
            self.router.load_state_dict({name.removeprefix(ROUTER): value for name, value in state.items() if name.startswith(ROUTER)})
        with torch.no_grad():
            for name, parameter in self.fresh.items():
                parameter.copy_(state[f"fresh:{name}"])
