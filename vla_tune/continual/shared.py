"""Share everything: one set of experts and one router that all tasks train, none ever frozen."""

from __future__ import annotations

from typing import ClassVar

from vla_tune.continual.lora import LoRA


class Shared(LoRA):
    """As sequential LoRA, with several experts and a router."""

    name: ClassVar[str] = "shared"

    def shape(self) -> tuple[int, int, int]:
        own = self.settings.shared
        return own.rank, own.alpha, own.top_k

    def grow(self, task: int) -> None:
        missing = [name for name in self.places(task) if self.pool.layers[name].mixture(0) is None]
        self.pool.grow(0, self.settings.shared.experts, missing)
        self.pool.thaw(0)
