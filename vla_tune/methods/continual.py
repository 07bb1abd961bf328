"""The interface of a continual-learning strategy: what is added and trained for each task of a stream, one strategy a file.

The training loop owns the data, the optimizer, the schedule and checkpoints; a `Learner` owns the model and its loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import MethodConfig
    from vla_tune.experts.tasks import TaskRouter
    from vla_tune.learners.base import Batch, Learner

Tasks = int | Tensor | None
"""One task for all samples, a number a sample (negative: none), or none at all."""


class Strategy(ABC):
    """One way to learn task after task; the model of `learner` is changed in place.

    routes: whether samples have to be told apart by task at deployment.
    """

    name: ClassVar[str]
    routes: ClassVar[bool] = True

    def __init__(self, learner: Learner, settings: MethodConfig, router: TaskRouter, steps: int, anchor: Anchor | None = None) -> None:
        self.learner, self.settings, self.router, self.anchor = learner, settings, router, anchor
        self.steps = steps
        """Of the optimizer, a task."""
        self.diagnostics: dict[str, Any] = {}
        """Of the last step, for the log."""
        self.prepare()

    def prepare(self) -> None:  # noqa: B027
        """Freeze and wrap, once."""

    @abstractmethod
    def begin(self, task: int) -> None:
        """Add what a task needs, before its optimizer is made."""

    def parameters(self) -> list[nn.Parameter]:
        """What trains now."""
        return [p for p in self.learner.model.parameters() if p.requires_grad]

    def loss(self, task: int, batch: Batch) -> Tensor:
        """What a step minimises."""
        with self.routed(task):
            return self.learner.loss(batch)

    def after_update(self, task: int) -> None:  # noqa: B027
        """Look after the parameters, right after the optimizer has changed them."""

    def after_step(self, task: int, step: int) -> bool:
        """Look at the task after its step number `step`; whether `parameters` are others now."""
        return False

    def end(self, task: int) -> None:  # noqa: B027
        """Settle what a task leaves, after its last step."""

    def routed(self, tasks: Tasks, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        """Forward passes in here are those of these tasks; `pictures`: how many each sample has, where they are not all as many."""
        return nullcontext()

    def as_stock(self) -> AbstractContextManager[None]:
        """In here the model's modules and names are those that its library made."""
        return nullcontext()

    def merged(self, task: int) -> AbstractContextManager[None] | None:
        """In here the model is a stock one that knows one task; None where a strategy does not keep tasks apart, or cannot."""
        return None

    @abstractmethod
    def added(self) -> dict[str, int]:
        """How many numbers the model has now that it did not have, by what they are."""

    def record(self, task: int) -> dict[str, Any]:
        """What there is to tell of a task when it has ended, for the report."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What the strategy has changed or added: with the model that the stream started from, everything."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor], note: str) -> None:
        """Go back to a `state_dict` and its `note`; nothing trains until the next `begin` or `resume`."""

    def note(self) -> str:
        """What of the state is no tensor, as JSON."""
        return "{}"

    @abstractmethod
    def resume(self, task: int) -> None:
        """After `load_state_dict` of a checkpoint in the middle of a task: what trains, trains again."""


class Freezing(Strategy):
    """The model is frozen but for parts that were never trained (a new action expert): those train with the first task."""

    def prepare(self) -> None:
        self.fresh = dict(self.learner.fresh())

    def train_fresh(self, *, on: bool) -> None:
        """Train the new parts, or no longer."""
        for parameter in self.fresh.values():
            parameter.requires_grad = on

    def state_dict(self) -> dict[str, Tensor]:
        return {f"fresh:{name}": p.detach() for name, p in self.fresh.items()}

    def load_state_dict(self, state: dict[str, Tensor], note: str) -> None:
        with torch.no_grad():
            for name, parameter in self.fresh.items():
                parameter.copy_(state[f"fresh:{name}"])
