"""Questions to a VLM whose samples are told apart by task before each is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_tune.console import progress
from vla_tune.experts.tasks import side_by_side
from vla_tune.vlm.answering import answer
from vla_tune.vlm.batches import asked
from vla_tune.vlm.parts import Taps, residual_taps
from vla_tune.vlm.prompts import prompts_of
from vla_tune.vqa.dataset import metric_of
from vla_tune.vqa.scorers import scores

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

    from vla_tune.learners.deployed import Deployed


def pooled(states: list[Tensor], mask: Tensor) -> Tensor:
    """Mean and deviation over the tokens of a mask `[batch, tokens]`, of the first, the middle and the last state: `[batch, 6 * d]`."""
    weights = (mask / mask.sum(1, keepdim=True))[..., None].to(states[0].dtype)
    chosen = (states[0], states[len(states) // 2], states[-1])
    parts = []
    for state in chosen:
        mean = (state * weights).sum(1)
        parts += [mean, ((state - mean[:, None]).square() * weights).sum(1).sqrt()]
    return side_by_side(torch.stack(parts, dim=1)).cpu()


@torch.no_grad()
def input_features(vlm: PreTrainedModel, inputs: Any, depth: int | None) -> Tensor:
    """How the VLM as it routes now sees prompts in its first `depth` blocks (all, by default), `[batch, 6 * d]`."""
    model: Any = vlm
    with residual_taps(vlm, Taps()) as taps:
        model.model(**inputs, use_cache=False)
    return pooled(taps.states[:depth], inputs["attention_mask"].bool())


def pictures_of(inputs: Any) -> Tensor | None:
    """How many pictures of each prompt the vision tower sees `[batch]`: a processor may cut one into several; those of zeros fill up."""
    pixels: Tensor = inputs["pixel_values"]
    return (pixels != 0).flatten(2).any(-1).sum(1).cpu() if pixels.ndim > 4 else None


def question_features(
    vlm: PreTrainedModel, processor: ProcessorMixin, questions: Dataset, batch_size: int, depth: int | None = None
) -> Tensor:
    """The same of all questions, `[n, 6 * d]`."""
    prompts, found = prompts_of(processor), []
    with progress("telling tasks apart", len(questions), "questions") as counter:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            found.append(input_features(vlm, prompts.inputs(batch["image"], asked(batch)).to(vlm.device), depth))
            counter.advance(len(found[-1]))
    return torch.cat(found)


def score_questions(
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    manifest: str,
    questions: Dataset,
    deployed: Deployed,
    settings: dict[str, Any],
    depth: int | None = None,
) -> tuple[Tensor, list[str], Tensor | None]:
    """Scores `[n]`, the answers, and the task that each question was taken to be of.

    Args:
        settings: `batch_size` and `max_new_tokens`.
        depth: how many of the VLM's blocks tasks are told apart by; default: all.

    """
    taken: list[Tensor] = []
    around = deployed.around(lambda inputs: input_features(vlm, inputs, depth), taken, pictures_of)
    said = answer(vlm, processor, questions, description="questions", around=around, **settings)
    marks = torch.from_numpy(scores(metric_of(manifest), said, questions)).double()
    return marks, said, torch.cat(taken) if taken else None
