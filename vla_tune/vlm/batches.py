"""Questions with their answers as batches that a VLM can be trained or differentiated on, in the Hugging Face forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_tune.vlm.prompts import prompts_of

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

IGNORED = -100
"""The label of a token whose loss does not count."""


def asked(batch: dict[str, Any]) -> list[str]:
    """What a VLM is asked in a batch of rows: a benchmark's prompts, and the bare questions of sets that have none."""
    return batch["prompt"] if "prompt" in batch else batch["question"]


def answered_inputs(processor: ProcessorMixin, questions: Dataset, rows: list[int]) -> dict[str, Tensor]:
    """The prompts that `answering` uses, each followed by its first right answer and the end of the turn.

    Returns:
        What the VLM's forward takes, `labels` included: only the answer's tokens count.

    """
    batch = questions[rows]
    return replied_inputs(processor, batch["image"], asked(batch), [right[0] for right in batch["answers"]])


def replied_inputs(processor: ProcessorMixin, pictures: list[Image], texts: list[str], answers: list[str]) -> dict[str, Tensor]:
    """As `answered_inputs`, of a picture, a text and an answer each."""
    prompts = prompts_of(processor)
    inputs = dict(prompts.inputs(pictures, texts))
    replies = reply_tokens(processor, answers)
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


def reply_tokens(processor: ProcessorMixin, answers: list[str]) -> list[list[int]]:
    """Each answer as the VLM says it, the end of its turn included."""
    prompts = prompts_of(processor)
    return [prompts.tokenizer(prompts.reply(answer), add_special_tokens=False)["input_ids"] for answer in answers]


def answer_loss(vlm: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    device = next(vlm.parameters()).device
    loss: Tensor = vlm(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).loss
    return loss


def answer_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """Over how many tokens `answer_loss` is the mean."""
    return (inputs["labels"] != IGNORED).sum()
