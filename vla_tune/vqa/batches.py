"""Questions with their answers as batches that a VLM can be trained or differentiated on, in the Hugging Face forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_tune.vqa.prompts import prompts_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

IGNORED = -100
"""The label of a token whose loss does not count."""


def answered_inputs(processor: ProcessorMixin, questions: Dataset, rows: list[int]) -> dict[str, Tensor]:
    """The prompts that `answering` uses, each followed by its first right answer and the end of the turn.

    Returns:
        What the VLM's forward takes, `labels` included: only the answer's tokens count.

    """
    batch, prompts = questions[rows], prompts_of(processor)
    inputs = dict(prompts.inputs(batch["image"], batch["question"]))
    replies = reply_tokens(processor, batch["answers"])
    length = max(map(len, replies))
    padding = prompts.tokenizer.pad_token_id
    reply = torch.tensor([ids + [padding] * (length - len(ids)) for ids in replies])
    counts = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in replies])
    inputs["labels"] = torch.cat([torch.full_like(inputs["input_ids"], IGNORED), reply.masked_fill(counts == 0, IGNORED)], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], reply], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], counts], dim=1)
    if "token_type_ids" in inputs:  # 1 is what attends to what came before alone
        inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.ones_like(reply)], dim=1)
    return inputs


def reply_tokens(processor: ProcessorMixin, answers: list[list[str]]) -> list[list[int]]:
    """Each question's first right answer as the VLM says it, the end of its turn included."""
    prompts = prompts_of(processor)
    return [prompts.tokenizer(prompts.reply(right[0]), add_special_tokens=False)["input_ids"] for right in answers]


def answer_loss(vlm: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    device = next(vlm.parameters()).device
    loss: Tensor = vlm(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).loss
    return loss


class Memory:
    """A set of questions that a method draws from while it trains; draw number k is the same whenever it is made.

    Args:
        questions: with pictures and answers.
        processor: of the VLM that will read them.
        seed: of the run.

    """

    def __init__(self, questions: Dataset, processor: ProcessorMixin, seed: int) -> None:
        self.questions, self.processor, self._seed = questions, processor, seed

    def draw(self, number: int, count: int, among: int | None = None) -> dict[str, Tensor]:
        """`count` questions, drawn with replacement from the first `among` (default: all)."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        size = min(among or len(self.questions), len(self.questions))
        rows: list[int] = torch.randint(size, (count,), generator=generator).tolist()
        return answered_inputs(self.processor, self.questions, rows)
