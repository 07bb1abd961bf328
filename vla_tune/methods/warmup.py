"""Fine-tuning in two phases: the action expert alone until its gradients are no longer those of a random network, then all."""

from __future__ import annotations

from typing import ClassVar

from vla_tune.methods.base import Gradients, Method


class Warmup(Method):
    """The VLM stands still for the first steps, after linear probing then fine-tuning (LP-FT, arXiv 2202.10054)."""

    name: ClassVar[str] = "warmup"

    def prepare(self) -> None:
        self.require_trainable_vlm()

    def combine(self, gradients: dict[str, Gradients]) -> None:
        if self.steps < self.settings.warmup.steps:
            for parameter in self.trained("vlm").values():
                parameter.grad = None  # not zero: the optimizer would decay the weight and count the step
