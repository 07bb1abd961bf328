"""A-GEM (arXiv 1812.00420): the task gradient loses what would make the answers to remembered questions worse."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vla_tune.geometry.projection import remove_conflict
from vla_tune.methods.base import Gradients, Method
from vla_tune.vlm.batches import answer_loss


class AGEM(Method):
    """One projection of the VLM's whole task gradient, against the gradient of the answers' loss on a draw from memory."""

    name: ClassVar[str] = "agem"
    needs_memory: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.require_answers()
        self.require_questions(self.settings.agem.samples)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        options = self.settings.agem
        answers = answer_loss(self.adapter.vlm, self.memory.draw(self.steps, options.batch_size, options.samples))
        self._answers = answers.item()
        return {**super().losses(batch), "answers": answers}

    def combined_parameters(self) -> dict[str, nn.Parameter]:
        return self.trained("vlm")

    def combine(self, gradients: dict[str, Gradients]) -> dict[str, Any]:
        conflict = remove_conflict(list(gradients["task"].values()), list(gradients["answers"].values()))
        shown = {"cosine": conflict.cosine, "projected": int(conflict.projected), "energy_shed": conflict.energy_shed}
        return {"answers": self._answers, **shown}
