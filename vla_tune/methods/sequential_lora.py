"""One low-rank adapter (LoRA) that goes on training on task after task."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor

from vla_tune.methods.experts import Experts


class SequentialLoRA(Experts):
    """Sequential LoRA: every task is the pool's task 0."""

    name: ClassVar[str] = "lora"
    routes: ClassVar[bool] = False

    def shape(self) -> tuple[int, int, int]:
        return self.settings.lora.rank, self.settings.lora.alpha, 0

    def layout(self) -> tuple[int, bool]:
        """How many experts a layer has, and whether by a router."""
        return 1, False

    def grow(self, task: int) -> None:
        missing = [name for name in self.places(task) if self.pool.layers[name].mixture(0) is None]
        count, routed = self.layout()
        self.pool.grow(0, count, missing, routed=routed)
        self.pool.thaw(0)

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        return self.pool.routed(0)

    def as_stock(self) -> AbstractContextManager[None]:
        """With all that was learnt in it: there is no task to choose."""
        return self.pool.merged(0, {})

    def resume(self, task: int) -> None:
        super().resume(task)
        self.pool.thaw(0)
