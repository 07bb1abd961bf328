"""A-GEM (arXiv 1812.00420): the task gradient loses what would make the answers to remembered questions worse."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vla_tune.geometry.projection import remove_conflict
from vla_tune.methods.answers import Answers
from vla_tune.methods.base import Gradients, Method, Term, filled


class AGEM(Method):
    """One projection of the VLM's whole task gradient, against the gradient of the answers' loss on a draw from memory."""

    name: ClassVar[str] = "agem"
    needs_memory: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.require_answers()
        self.require_questions(self.settings.agem.samples)
        self._vlm = self.trained("vlm")
        self._answers = Answers(self)

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        options = self.settings.agem
        answers = self._answers.loss(options.batch_size, options.samples)
        terms = super().terms(batch)
        return terms if answers is None else {**terms, "answers": Term(answers, into=self._vlm, apart=True, shown=True)}

    def survey(self, batch: dict[str, Any]) -> dict[str, Tensor | int]:
        options = self.settings.agem
        return {**super().survey(batch), "answers": self._answers.tokens(options.batch_size, options.samples)}

    def combine(self, gradients: dict[str, Gradients]) -> None:
        conflict = remove_conflict(list(filled(self._vlm).values()), list(gradients["answers"].values()))
        self.diagnostics = {"cosine": conflict.cosine, "projected": conflict.projected.int(), "energy_shed": conflict.energy_shed}
