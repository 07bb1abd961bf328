"""AEGIS's penalty (arXiv 2604.16067) as what it looks like: a term of the loss, not a direction to project out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_tune.geometry.gaussian import BatchSums, anchor_distances
from vla_tune.methods.base import WHOLE, Summed, Term


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
        mask, whiten = taps.mask, self.settings.penalty.whiten
        assert mask is not None
        assert self.anchor is not None
        statistics = list(zip(self.anchor.mean, self.anchor.std, strict=True))
        if self.part == WHOLE:
            layers = anchor_distances(taps.states, mask, statistics, whiten=whiten)
            return self.summed(task, penalty=torch.stack(layers).sum() / self.adapter.width)
        whole, parts = self._sums.distances(taps.states, mask, statistics, whiten=whiten)
        self.diagnostics = {"penalty": torch.stack(whole).sum() / self.adapter.width}
        return {**self.summed(task), "penalty": Term(torch.stack(parts).sum() / self.adapter.width, self.weight, mean=False)}

    def survey(self, batch: dict[str, Any]) -> dict[str, Tensor | int]:
        """The penalty is a statistic of the whole batch: the prefix is passed once more, to gather it."""
        if self.part.index == 0:
            self._sums = BatchSums()
        taps = self.adapter.batch_prefix(batch)
        assert taps.mask is not None
        self._sums.add(taps.states, taps.mask)
        return super().survey(batch)
