"""One low-rank adapter a task, kept apart: nothing is shared and nothing forgotten, and every task costs the same."""

from __future__ import annotations

from typing import ClassVar

from vla_tune.methods.experts import Experts


class LoRAPerTask(Experts):
    """A pool with one expert a task and no router."""

    name: ClassVar[str] = "lora_per_task"

    def shape(self) -> tuple[int, int, int]:
        return self.settings.lora.rank, self.settings.lora.alpha, 0

    def grow(self, task: int) -> None:
        self.pool.grow(task, 1, self.places(task), routed=False, old=lambda _: False)
