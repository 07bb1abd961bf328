"""What asking a VLM takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin


class Prompts(ABC):
    """Prompts, right answers and token masks of one VLM."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor: Any = processor  # transformers sets what follows without declaring it
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer  # type: ignore[attr-defined]

    @abstractmethod
    def inputs(self, pictures: list[Image], questions: list[str]) -> BatchFeature:
        """What the VLM's `generate` takes, padded on the left."""

    @abstractmethod
    def reply(self, answer: str) -> str:
        """What the VLM writes behind its prompt, the end of its turn included."""

    @abstractmethod
    def image_and_question(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Which tokens `[batch, length]` are the picture's or the question's text, of prompts with or without replies."""

    @property
    @abstractmethod
    def wording(self) -> str:
        """What is around a question; another wording may get other answers."""

    def _special(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids, device=ids.device))
