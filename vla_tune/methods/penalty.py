"""AEGIS's penalty (arXiv 2604.16067) as what it looks like: a term of the loss, not a direction to project out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from vla_tune.geometry.gaussian import anchor_distances
from vla_tune.methods.base import Summed, Term


class Penalty(Summed):
    """Task plus the squared Wasserstein-2 distance of this batch's residual stream to the anchor, a channel."""

    name: ClassVar[str] = "penalty"
    needs_anchor: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.weight = self.settings.penalty.weight

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        with self.adapter.taps() as taps:
            task = self.task_loss(batch)
        assert taps.mask is not None
        assert self.anchor is not None
        statistics = zip(self.anchor.mean, self.anchor.std, strict=True)
        layers = anchor_distances(taps.states, taps.mask, statistics, whiten=self.settings.penalty.whiten)
        return self.summed(task, penalty=torch.stack(layers).sum() / self.adapter.width)
