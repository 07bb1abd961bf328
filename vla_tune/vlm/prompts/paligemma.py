"""PaliGemma's prompts: a task prefix that it was pretrained with, no chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.vlm.prompts.base import Prompts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature

PREFIX = "answer en "


class PaliGemmaPrompts(Prompts):
    """The picture's tokens, then `answer en` and the question; picture and prompt attend to each other both ways."""

    def inputs(self, pictures: list[Image], questions: list[str]) -> BatchFeature:
        text = [f"{self.processor.image_token}{PREFIX}{question}" for question in questions]
        inputs: BatchFeature = self.processor(images=pictures, text=text, padding=True, padding_side="left", return_tensors="pt")
        inputs.pop("labels", None)  # of a reply that is not there
        return inputs

    def reply(self, answer: str) -> str:
        return f"{answer}{self.tokenizer.eos_token}"

    def image_and_question(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The reply's tokens have type 1; padding and BOS are special."""
        ids = inputs["input_ids"]
        image = ids == self.processor.image_token_id
        mask: Tensor = image | (~self._special(ids) & (inputs["token_type_ids"] == 0))
        return mask

    @property
    def wording(self) -> str:
        return PREFIX
