"""Answers that are kept between runs: of the same weights, processor and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from vla_tune.artifacts.folder import table_digest, write_json
from vla_tune.artifacts.store import made_once
from vla_tune.resources import cache_folder
from vla_tune.vlm.answering import answer
from vla_tune.vlm.prompts import prompts_of
from vla_tune.vqa.dataset import questions_digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

FILE = "answers.json"
"""A list, in the questions' order."""


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

    def ask(file: Path) -> None:
        write_json(file, answer(vlm, processor, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, description=description))

    answers: list[str] = json.loads(made_once(cache_folder() / "answers" / key / FILE, ask).read_text())
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
