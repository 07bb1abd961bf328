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

    def layout(self) -> tuple[int, bool]:
        return self.settings.shared.experts, True
