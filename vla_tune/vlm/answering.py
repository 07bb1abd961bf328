"""Answers of a stock Hugging Face VLM: `generate` on the prompts of its family, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import progress
from vla_tune.vlm.batches import asked
from vla_tune.vlm.prompts import prompts_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin


@torch.no_grad()
def answer(
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Dataset,
    *,
    batch_size: int,
    max_new_tokens: int,
    description: str,
    around: Callable[[Any], AbstractContextManager[object]] = nullcontext,
) -> list[str]:
    """The VLM's greedy free-form answers, as it wrote them but for surrounding white space; each batch of inputs `around` its context."""
    answers: list[str] = []
    model: Any = vlm  # transformers declares `generate` on a protocol that mypy finds no model to fit
    prompts = prompts_of(processor)
    with progress(description, len(questions), "questions") as counter:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            inputs = prompts.inputs(batch["image"], asked(batch)).to(vlm.device)
            with around(inputs):
                tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
            written = tokens[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in prompts.tokenizer.batch_decode(written, skip_special_tokens=True)]
            counter.advance(len(written))
    return answers
