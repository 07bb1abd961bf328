"""Answers by likelihood: which of some candidates a VLM finds the most probable. Free answers in a format that fine-tuning broke score
nothing, while the knowledge may still be there; this tells the two apart.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import progress
from vla_tune.vlm.batches import IGNORED, asked, replied_inputs
from vla_tune.vqa.scorers import LETTERS, options
from vla_tune.vqa.scoring import most_frequent, normalise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

MOST = 16
"""Candidates of an open question."""


def candidates(metric: str, questions: Dataset, seen: Dataset) -> list[list[str]]:
    """What each question may be answered with: the options' letters, yes and no, or the most frequent answers to questions of its type.

    Args:
        metric: of the questions.
        questions: that are asked.
        seen: other questions of the same kind, whose answers are known.

    """
    if metric == "yes_no":
        return [["yes", "no"]] * len(questions)
    counts: dict[str, Counter[str]] = {}
    everything: Counter[str] = Counter()
    for kind, answers in zip(seen["type"], seen["answers"], strict=True):
        given = [normalise(answer) for answer in answers]
        counts.setdefault(kind, Counter()).update(given)
        everything.update(given)
    common = {kind: most_frequent(found)[:MOST] for kind, found in counts.items()}
    rest = most_frequent(everything)[:MOST]  # for a type that was never seen
    return [
        list(LETTERS[: len(choices)]) if choices else common.get(kind, rest)
        for kind, choices in zip(questions["type"], options(questions), strict=True)
    ]


@torch.no_grad()
def rank(
    vlm: PreTrainedModel, processor: ProcessorMixin, questions: Dataset, among: list[list[str]], *, batch_size: int, description: str
) -> list[str]:
    """The candidate of each question whose reply, the end of the turn included, has the greatest log-likelihood behind the prompt.

    Args:
        among: the candidates of each question; the first of equally likely ones is taken.
        batch_size: pairs of a question and a candidate in a forward pass.

    """
    pairs = [(row, answer) for row, answers in enumerate(among) for answer in answers]
    likely: list[float] = []
    with progress(description, len(pairs), "candidates") as counter:
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            likely += _log_likelihoods(vlm, processor, questions[[row for row, _ in batch]], [answer for _, answer in batch])
            counter.advance(len(batch))
    best: dict[int, tuple[float, str]] = {}
    for (row, answer), value in zip(pairs, likely, strict=True):
        if row not in best or value > best[row][0]:
            best[row] = (value, answer)
    return [best[row][1] for row in range(len(among))]


def _log_likelihoods(vlm: PreTrainedModel, processor: ProcessorMixin, batch: dict[str, Any], answers: list[str]) -> list[float]:
    inputs = {name: value.to(vlm.device) for name, value in replied_inputs(processor, batch["image"], asked(batch), answers).items()}
    labels = inputs.pop("labels")[:, 1:]
    counts = labels != IGNORED
    model: Any = vlm
    states = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1][counts]  # the whole vocabulary only where it counts
    found = model.lm_head(states).float().log_softmax(-1).gather(1, labels[counts][:, None])[:, 0]
    sums = torch.zeros(len(answers), device=found.device).index_add_(0, counts.nonzero()[:, 0], found)
    values: list[float] = sums.tolist()
    return values
