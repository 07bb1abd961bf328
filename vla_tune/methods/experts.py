"""What the strategies that add low-rank experts share: the pool, the parts of the model that are new, the state."""

from __future__ import annotations

import json
from abc import abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vla_tune.experts.pool import ExpertPool, mean_shares
from vla_tune.methods.continual import Continual


class Experts(Continual):
    """Low-rank experts in the model's linear layers.

    In the first task new parts of the model get none: their own weights can learn.
    """

    def prepare(self) -> None:
        rank, alpha, top_k = self.shape()
        self.pool = ExpertPool(self.learner.model, self.learner.layers(), rank=rank, scale=alpha / rank, top_k=top_k)
        own = {id(p) for p in self.fresh.values()}
        self.young = {name for name, layer in self.pool.layers.items() if id(layer.weight) in own}

    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Rank, alpha, and top-k of the routers."""

    def begin(self, task: int) -> None:
        self.pool.freeze()
        self.train_fresh(on=task == 0)
        self.grow(task)

    @abstractmethod
    def grow(self, task: int) -> None:
        """Add the experts of a task."""

    def places(self, task: int) -> list[str]:
        """The layers that get experts in a task."""
        return [name for name in self.pool.layers if task or name not in self.young]

    def end(self, task: int) -> None:
        self.pool.freeze()
        self.train_fresh(on=False)

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        return self.pool.routed(tasks, pictures)

    def as_stock(self) -> AbstractContextManager[None]:
        return self.pool.detached()

    def merged(self, task: int) -> AbstractContextManager[None] | None:
        """Exact where experts count in full; a router's shares are those of the mean over a probe's tokens."""
        return self.pool.merged(task, self.shares(task)) if self.routes else None

    def shares(self, task: int) -> dict[str, Tensor]:
        """The mean routing probabilities `[1 + experts]` of every layer that routes, over the tokens of the task's probe."""
        return {name: mean_shares(calls) for name, calls in self.probed(task).items()}

    @torch.no_grad()
    def probed(self, task: int) -> dict[str, list[Tensor]]:
        """The routing probabilities `[tokens, 1 + experts]` of every layer that routes, call by call, on the task's probe."""
        with self.watched() as seen, self.routed(task):
            self.learner.probe_loss(task)
        return {name: calls for name, calls in seen.items() if calls}

    def watched(self, *, weighted: bool = False) -> AbstractContextManager[dict[str, list[Tensor]]]:
        """Collect routing probabilities `[tokens, 1 + experts]` by layer, call by call, of the tokens that are no padding."""
        return self.pool.watched(lambda: self.learner.counted, weighted=weighted)

    def added(self) -> dict[str, int]:
        return self.pool.count()

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.pool.state_dict(), **super().state_dict()}

    def note(self) -> str:
        return json.dumps({"structure": self.pool.structure()})

    def load_state_dict(self, state: dict[str, Tensor], note: str = "{}") -> None:
        self.pool.load(state, json.loads(note)["structure"])
        super().load_state_dict(state, note)

    def resume(self, task: int) -> None:
        self.pool.thaw(task)
        self.train_fresh(on=task == 0)
