"""Knowledge insulation (arXiv 2505.23705): the VLM learns actions as tokens and answers questions; the expert's gradient stays out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vla_tune.methods.base import Method
from vla_tune.methods.cotraining import step_answers
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
        config = self.policy.config
        self._shape = (config.chunk_size, config.action_feature.shape[0], self.settings.insulated.bins)
        self.extras["actions"] = nn.Linear(self.adapter.width, math.prod(self._shape)).to(config.device)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with self.adapter.taps() as taps:
            flow = super().losses(batch)
        return {**flow, "actions": self._action_loss(taps, batch), "answers": step_answers(self, batch, self.settings.insulated.share)}

    def backward(self, batch: dict[str, Any], backward: Callable[..., None] = Tensor.backward) -> Tensor:
        losses = self.losses(batch)
        self.diagnostics = {name: loss.item() for name, loss in losses.items()}
        expert = {**self.trained("expert"), **self.trained("state_proj")}
        backward(losses["task"], retain_graph=True, inputs=list(expert.values()))
        vlm = [*self.trained("vlm").values(), *self.extras.parameters()]
        backward(losses["actions"] + self.settings.insulated.weight * losses["answers"], inputs=vlm)
        return losses["task"].detach()

    def _action_loss(self, taps: Taps, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy of the chunk's bins; steps beyond the episode's end do not count."""
        text = taps.counted("text")
        last = text.shape[1] - 1 - text.flip(1).int().argmax(1)
        states = taps.states[-1][torch.arange(len(last), device=last.device), last]
        logits = self.extras["actions"](self.adapter.normed(states)).unflatten(1, self._shape)
        inside = ~batch["action_is_pad"] if "action_is_pad" in batch else torch.ones_like(batch["action"][..., 0], dtype=torch.bool)
        return cross_entropy(logits[inside].flatten(0, 1), discretised(batch["action"][inside], self._shape[-1]).flatten())


def discretised(actions: Tensor, bins: int) -> Tensor:
    """The number, from 0, of each value's bin: `bins` equal ones over -`CLIP`..`CLIP`."""
    return ((actions / CLIP + 1) / 2 * bins).long().clamp(0, bins - 1)
