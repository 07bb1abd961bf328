"""A model as it is met after some task of a stream: no task id is given, each sample's task is told from its features."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vla_tune.experts.tasks import NONE, TaskRouter


class RoutesTasks(Protocol):
    """What is known of a method here: whether samples are told apart by task, by what, and passes for some tasks (`Method.routed`)."""

    @property
    def routes(self) -> bool: ...
    @property
    def router(self) -> TaskRouter | None: ...

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Deployed:
    """A method as it stands, and how its router tells tasks apart.

    how: `sample` decides for every sample alone; `batch` once for all that are seen together, as published selectors do (of pictures
        a whole test set, of questions `vqa.batch_size`, of a robot the calls of `rollout.parallel` worlds); `given` takes the number
        `task`, the upper bound that an oracle would reach.
    """

    method: RoutesTasks
    how: str = "sample"
    task: int | None = None

    def tasks(self, features: Tensor) -> Tensor | None:
        """The tasks of samples by the frozen model's features `[n, d]`; None where the method treats all alike."""
        if not self.method.routes:
            return None
        router = self.method.router
        assert router is not None
        if self.how == "given":
            known = self.task is not None and self.task in router.sums
            return features.new_full((len(features),), self.task if known and self.task is not None else NONE).long()
        if not router.sums:
            return features.new_full((len(features),), NONE).long()
        return (router.assign if self.how == "sample" else router.assign_batch)(features)

    def around[T](
        self, see: Callable[[T], Tensor], taken: list[Tensor], pictures: Callable[[T], Tensor | None] = lambda _: None
    ) -> Callable[[T], AbstractContextManager[None]]:
        """Given a batch's inputs: the context of a pass over it, once `see` has said how the frozen model sees it.

        taken: what the batches' samples are taken for is added here. pictures: how many each sample has; by default all as many.
        """

        def context(inputs: T) -> AbstractContextManager[None]:
            if not self.method.routes:
                return self.routed(None)
            with self.routed(None):
                features = see(inputs)
            tasks = self.tasks(features)
            assert tasks is not None
            taken.append(tasks)
            return self.routed(tasks, pictures(inputs))

        return context

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        """Forward passes in here are those of these tasks."""
        return self.method.routed(tasks, pictures)
