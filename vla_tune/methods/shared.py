"""Share everything: one set of experts and one router that all tasks train, none ever frozen."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar

import torch

from vla_tune.methods.sequential_lora import SequentialLoRA


class Shared(SequentialLoRA):
    """As sequential LoRA, with several experts and a router."""

    name: ClassVar[str] = "shared"

    def shape(self) -> tuple[int, int, int]:
        own = self.settings.shared
        return own.rank, own.alpha, own.top_k

    def layout(self) -> tuple[int, bool]:
        return self.settings.shared.experts, True

    def as_stock(self) -> AbstractContextManager[None]:
        """Its experts by their mean shares, all tasks alike."""
        each = [self.shares(task) for task in range(len(self.learner.tasks))]
        return self.pool.merged(0, {name: torch.stack([shares[name] for shares in each]).mean(0) for name in each[0]})
