"""Replay questions: a set that a method draws from while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vla_tune.vlm.batches import answered_inputs

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import ProcessorMixin


class ReplayQuestions:
    """Replay questions, drawn by number: draw k is the same whenever it is made.

    Args:
        questions: with pictures and answers.
        processor: of the VLM that will read them.
        seed: of the run.

    """

    def __init__(self, questions: Dataset, processor: ProcessorMixin, seed: int) -> None:
        self.questions, self.processor, self._seed = questions, processor, seed

    def draw(self, number: int, count: int, among: int | None = None, part: slice = slice(None)) -> dict[str, Tensor]:
        """`count` questions, drawn with replacement from the first `among` (default: all); `part`: which of them are wanted."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        size = min(among or len(self.questions), len(self.questions))
        rows: list[int] = torch.randint(size, (count,), generator=generator).tolist()
        return self.at(rows[part])

    def at(self, rows: list[int]) -> dict[str, Tensor]:
        """These questions with their answers, as the VLM's forward takes them."""
        return answered_inputs(self.processor, self.questions, rows)
