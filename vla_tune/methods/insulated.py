"""Knowledge insulation (arXiv 2505.23705): the VLM learns actions as tokens and answers questions; the expert's gradient stays out."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vla_tune.methods.answers import Answers, share_of
from vla_tune.methods.base import Method, Term
from vla_tune.vlm.parts import Taps

CLIP = 3.0
"""Normalised actions beyond this many deviations share the outermost bins."""


class Insulated(Method):
    """Flow matching trains the expert alone; the VLM trains on discretised actions, and on questions as in co-training.

    A linear layer reads the whole chunk at once from the last text token: a new head in place of the paper's FAST
    tokens, which SmolVLA's vocabulary has no room for. It is dropped after training.
    """

    name: ClassVar[str] = "insulated"
    needs_memory: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.require_answers()
        config: Any = self.adapter.policy.config
        self._shape = (config.chunk_size, config.action_feature.shape[0], self.settings.insulated.bins)
        self.extras["actions"] = nn.Linear(self.adapter.width, math.prod(self._shape)).to(config.device)
        self._answers = Answers(self)
        self._expert = {**self.trained("expert"), **self.trained("state_proj")}
        self._vlm = {**self.trained("vlm"), **{f"extras:{name}": p for name, p in self.extras.named_parameters()}}

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        with self.adapter.taps() as taps:
            flow = super().terms(batch)["task"].value
        options = self.settings.insulated
        terms = {
            "task": Term(flow, into=self._expert, shown=True),
            "actions": Term(self._action_loss(taps, batch), into=self._vlm, shown=True),
        }
        answers = self._answers.loss(share_of(self, batch, options.share))
        return terms if answers is None else {**terms, "answers": Term(answers, options.weight, into=self._vlm, shown=True)}

    def survey(self, batch: dict[str, Any]) -> dict[str, Tensor | int]:
        answers = self._answers.tokens(share_of(self, batch, self.settings.insulated.share))
        return {**super().survey(batch), "actions": inside(batch).sum(), "answers": answers}

    def _action_loss(self, taps: Taps, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of the chunk's bins; steps beyond the episode's end do not count."""
        text = taps.counted("text")
        last = text.shape[1] - 1 - text.flip(1).int().argmax(1)
        states = taps.states[-1][torch.arange(len(last), device=last.device), last]
        logits = self.extras["actions"](self.adapter.normed(states)).unflatten(1, self._shape)
        bins, counted = discretised(batch["action"], self._shape[-1]), inside(batch)
        losses = cross_entropy(logits.flatten(0, 2), bins.flatten(), reduction="none").unflatten(0, bins.shape)
        return torch.where(counted[..., None], losses, 0).sum() / (counted.sum() * bins.shape[-1])


def inside(batch: dict[str, Any]) -> Tensor:
    """Which actions of each chunk `[batch, chunk]` lie in their episode."""
    return ~batch["action_is_pad"] if "action_is_pad" in batch else torch.ones_like(batch["action"][..., 0], dtype=torch.bool)


def discretised(actions: Tensor, bins: int) -> Tensor:
    """The number, from 0, of each value's bin: `bins` equal ones over -`CLIP`..`CLIP`."""
    return ((actions / CLIP + 1) / 2 * bins).long().clamp(0, bins - 1)
