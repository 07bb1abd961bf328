"""Answers of a stock Hugging Face VLM: `generate` on the prompts of its family, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import transformers

from vla_tune.artifacts.folder import table_digest, write_json
from vla_tune.console import progress
from vla_tune.resources import cache_folder
from vla_tune.vlm.prompts import prompts_of
from vla_tune.vqa.batches import asked
from vla_tune.vqa.dataset import questions_digest

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


def cached_answers(
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Dataset,
    *,
    backbone: str,
    batch_size: int,
    max_new_tokens: int,
    description: str,
) -> list[str]:
    """As `answer`, kept under the cache folder for the same weights (`backbone` is their digest), processor and questions."""
    key = _answers_key(processor, questions, backbone, max_new_tokens)
    file = cache_folder() / "answers" / f"{key}.json"
    try:
        known = json.loads(file.read_text())
        return [str(known[name]) for name in questions["question_id"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: asked again
    answers = answer(vlm, processor, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, description=description)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, dict(zip(questions["question_id"], answers, strict=True)))
    return answers


def _answers_key(processor: Any, questions: Dataset, backbone: str, max_new_tokens: int) -> str:
    parts: dict[str, Any] = {
        "weights": backbone,
        "questions": questions_digest(questions),
        "generation": {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1},
        "template": prompts_of(processor).wording,
        "pictures": processor.image_processor.to_json_string(),
        "vocabulary": processor.tokenizer.get_vocab(),
        "libraries": [torch.__version__, transformers.__version__],
    }
    return table_digest(parts).removeprefix("sha256:")[:32]
