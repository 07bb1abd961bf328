"""Which task a sample belongs to, told from how the frozen model sees it: no task id is given at deployment.

Ours: ridge regression from random features of what is seen of a sample to the tasks (after RanPAC, arXiv 2307.02251). What it keeps
are sums over samples, so tasks are added exactly and in any order, and its cost does not grow with them. Every sample is
decided alone; `assign_batch`, one decision for a whole batch of one task as MoE-Adapters' selector makes it (arXiv 2403.11549), is
there to be reported beside it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

NONE = -1
"""Of no task: the model as it was."""
RIDGE = 0.001
"""Of the mean of the second moment's diagonal."""


class TaskRouter:
    """A linear classifier of samples' features `[n, d]` (`side_by_side`) over the tasks, and over `NONE`.

    width: how many random features. The samples of every task count as much as those of any other.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.moment = torch.zeros(width, width, dtype=torch.float64)
        self.sums: dict[int, Tensor] = {}
        """The mean random feature of each task's samples."""
        self.means: dict[int, Tensor] = {}
        """The mean feature of each task's samples, to compare tasks by."""
        self._weights: Tensor | None = None

    def add(self, task: int, features: Tensor) -> None:
        """A task, or `NONE`, by training samples of it."""
        lifted = self._lifted(features)
        self.moment = _mirrored(self.moment + lifted.T @ lifted / len(lifted))
        self.sums[task] = lifted.mean(0)
        self.means[task] = features.double().mean(0)
        self._weights = None

    def assign(self, features: Tensor) -> Tensor:
        """The task of each sample `[n]`, or `NONE`."""
        return self._names()[self._responses(features).argmax(1)]

    def assign_batch(self, features: Tensor) -> Tensor:
        """One decision for all samples together, `[n]`."""
        best = self._responses(features).sum(0).argmax()
        return self._names()[best].repeat(len(features))

    def nearest(self, task: int) -> int:
        """The earlier task whose samples look most like those of this one: whose mean is nearest."""
        return min(range(task), key=lambda other: float((self.means[other] - self.means[task]).norm()))

    @property
    def size(self) -> int:
        """How many numbers it keeps: half of a symmetric matrix, and two vectors a task."""
        return sum(part.numel() for part in self.state_dict().values())

    def _names(self) -> Tensor:
        return torch.tensor(sorted(self.sums))

    def _responses(self, features: Tensor) -> Tensor:
        """`[n, tasks]`, in the order of `_names`."""
        if self._weights is None:
            ridge = RIDGE * self.moment.diagonal().mean() * torch.eye(self.width, dtype=torch.float64)
            targets = torch.stack([self.sums[task] for task in sorted(self.sums)], dim=1)
            self._weights = torch.linalg.solve(self.moment + ridge, targets)
        return self._lifted(features) @ self._weights

    def _lifted(self, features: Tensor) -> Tensor:
        """Random features `[n, width]`, float64, the same whenever they are drawn."""
        weights, bias = _random_layer(features.shape[1], self.width)
        return (features.double() @ weights + bias).relu()

    def state_dict(self) -> dict[str, Tensor]:
        """The second moment's upper triangle, row by row, and each task's means by `sum:{task}` and `mean:{task}`."""
        sums = {f"sum:{task}": vector for task, vector in self.sums.items()}
        means = {f"mean:{task}": vector for task, vector in self.means.items()}
        return {"moment": self.moment[*torch.triu_indices(self.width, self.width)], **sums, **means}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state_dict`."""
        upper = torch.zeros_like(self.moment)
        upper[*torch.triu_indices(self.width, self.width)] = state["moment"]
        self.moment, self._weights = _mirrored(upper), None
        self.sums = {int(name[4:]): vector for name, vector in state.items() if name.startswith("sum:")}
        self.means = {int(name[5:]): vector for name, vector in state.items() if name.startswith("mean:")}


def _mirrored(matrix: Tensor) -> Tensor:
    """The symmetric matrix that has the same upper triangle."""
    return matrix.triu() + matrix.triu(1).T


@functools.lru_cache(maxsize=1)
def _random_layer(d: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(d, width, generator=generator, dtype=torch.float64) / d**0.5
    return weights, torch.randn(width, generator=generator, dtype=torch.float64)


def side_by_side(*views: Tensor) -> Tensor:
    """Several views of the same samples, each `[n, groups, d]`, as `[n, sum of groups * d]`; every group's vector at the length sqrt(d)."""
    return torch.cat([(torch.nn.functional.normalize(view.float(), dim=-1) * view.shape[-1] ** 0.5).flatten(1) for view in views], dim=1)
