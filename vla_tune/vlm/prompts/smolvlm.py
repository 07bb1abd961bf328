"""SmolVLM's prompts: the processor's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vla_tune.vlm.prompts.base import Prompts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature


class SmolVLMPrompts(Prompts):
    """One user message a question, the picture first."""

    def inputs(self, pictures: list[Image], questions: list[str]) -> BatchFeature:
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
            for picture, text in zip(pictures, questions, strict=True)
        ]
        inputs: BatchFeature = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
        )
        return inputs

    def reply(self, answer: str) -> str:
        return f" {answer}{self.processor.end_of_utterance_token}"

    def image_and_question(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The question follows the picture's last token and ends at the end of the user's turn.

        Special tokens (padding, BOS, the frame of the picture), role words and the answer are left out.
        """
        ids = inputs["input_ids"]
        image = ids == self.processor.image_token_id
        place = torch.arange(ids.shape[1], device=ids.device)
        behind = place > (image * place).amax(1, keepdim=True)
        end = self.tokenizer.convert_tokens_to_ids(self.processor.end_of_utterance_token)
        over = (behind & (ids == end)).cumsum(1) > 0
        mask: Tensor = image | (behind & ~over & ~self._special(ids))
        return mask

    @property
    def wording(self) -> str:
        return str(self.processor.chat_template)
