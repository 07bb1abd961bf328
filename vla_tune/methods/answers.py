"""The loss of answers to VQA questions, for methods that go on reading them beside the robot's batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vla_tune.vlm.batches import answer_loss, answer_tokens

if TYPE_CHECKING:
    from vla_tune.methods.base import Method


class Answers:
    """Some questions a step, dealt to the step's micro-batches."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._drawn: tuple[object, dict[str, Tensor] | None] = (None, None)

    def loss(self, count: int, among: int | None = None) -> Tensor | None:
        """Mean cross-entropy of the answers' tokens; None where none of the questions is this micro-batch's."""
        inputs = self._inputs(count, among)
        if inputs is None:
            return None
        with self._method.learner.computing():
            return answer_loss(self._method.adapter.vlm, inputs)

    def tokens(self, count: int, among: int | None = None) -> Tensor | int:
        """Over how many tokens that is the mean."""
        inputs = self._inputs(count, among)
        return 0 if inputs is None else answer_tokens(inputs)

    def _inputs(self, count: int, among: int | None) -> dict[str, Tensor] | None:
        """The questions of this step and micro-batch, `count` in the whole step, from the first `among`."""
        method = self._method
        key = (method.steps, method.part, count, among)
        if self._drawn[0] != key:
            rows = method.part.rows(count)
            none = rows.start == rows.stop
            self._drawn = (key, None if none else method.memory.draw(method.steps, count, among, rows))
        return self._drawn[1]


def share_of(method: Method, batch: dict[str, Tensor], share: float) -> int:
    """A share of the whole batch's samples, at least one."""
    return max(1, round(share * (method.part.samples or len(batch["action"]))))
