"""Streams of VQA tasks on a VLM: each task a manifest of questions, its anchor split to learn from and its test split to be scored on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vla_tune.data.manifests import in_folder
from vla_tune.experts.tasks import NONE
from vla_tune.learners.answers import question_features, score_questions
from vla_tune.learners.base import StreamLearner, draws, redraws
from vla_tune.learners.once import once
from vla_tune.vlm.batches import answer_loss, answer_tokens, answered_inputs
from vla_tune.vlm.loading import load_processor, load_vlm, save_vlm
from vla_tune.vlm.parts import TEXT, VISION, part_blocks
from vla_tune.vqa.dataset import vqa_questions

if TYPE_CHECKING:
    from datasets import Dataset

    from vla_tune.config import Config
    from vla_tune.learners.deployed import Deployed

PROBE = 32
"""Questions that routers are looked at on."""


class Questions(StreamLearner):
    """A VLM; a batch is what its forward takes, labels included. What belongs to no task: the questions of `stream.reference`."""

    writes = True
    vlm_prefix = ""
    known_parts: ClassVar[tuple[str, ...]] = ("text", "vision")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model, self.processor = load_vlm(self.base)
        nn.Module.to(self.model, self.config.device)
        self._manifests = [in_folder(config.stream.folder, task.manifest) for task in config.stream.tasks if task.manifest]
        self._reference = in_folder(config.stream.folder, config.stream.reference) if config.stream.reference else None
        for task, _ in enumerate(self.tasks):
            self._questions(task)  # so that what is wrong with one is told before the first is learnt
        self._settings = {"batch_size": config.vqa.batch_size, "max_new_tokens": config.vqa.max_new_tokens}

    def stacks(self) -> dict[str, list[tuple[str, nn.Module]]]:
        return {"text": part_blocks(self.model, TEXT), "vision": part_blocks(self.model, VISION)}

    def batches(self, task: int, step: int) -> Iterator[dict[str, Tensor]]:
        known = self._questions(task)
        for rows in draws(len(known), self.config.train.batch_size, self.config.seed, task, step):
            yield answered_inputs(self.processor, known, rows.tolist())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.counted = batch["attention_mask"].to(next(self.model.parameters()).device).bool()
        return answer_loss(self.model, batch)  # type: ignore[arg-type]

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return answer_tokens(batch)

    def probe(self, task: int) -> dict[str, Tensor]:
        known = self._questions(task)
        return answered_inputs(self.processor, known, list(range(min(PROBE, len(known)))))

    def remembered(self, task: int, samples: int, count: int, number: int) -> dict[str, Tensor]:
        known = self._questions(task)
        rows = redraws(min(samples, len(known)), count, self.config.seed, number)
        return answered_inputs(self.processor, known, rows.tolist())

    def task_features(self, task: int) -> Tensor:
        return self._features(self._questions(task))

    def reference_features(self) -> Tensor | None:
        return self._features(vqa_questions(self._reference, "anchor")) if self._reference else None

    def _features(self, questions: Dataset) -> Tensor:
        looked_at = questions.select(range(min(self.config.stream.router_samples, len(questions))))
        return question_features(self.model, self.processor, looked_at, self.config.vqa.batch_size)  # type: ignore[arg-type]

    def score(self, task: int, deployed: Deployed) -> tuple[Tensor, Tensor | None]:
        return self._score(self._manifests[task], deployed)

    def score_reference(self, deployed: Deployed) -> tuple[Tensor, Tensor | None] | None:
        return self._score(self._reference, deployed) if self._reference else None

    def _score(self, manifest: str, deployed: Deployed) -> tuple[Tensor, Tensor | None]:
        questions = _tested(manifest, self.config.vqa.questions)
        marks, _, tasks = score_questions(self.model, self.processor, manifest, questions, deployed, self._settings)  # type: ignore[arg-type]
        return marks, tasks

    def images(self, task: int) -> list[str]:
        manifest = self._reference if task == NONE else self._manifests[task]
        return list(_tested(str(manifest), self.config.vqa.questions)["image_id"])

    @once
    def _questions(self, task: int) -> Dataset:
        return vqa_questions(self._manifests[task], "anchor")

    def save(self, folder: Path, final: Path) -> None:
        # Opened anew: one that was used would write how it padded last.
        save_vlm(self.model, load_processor(self.base), folder / "vlm")  # type: ignore[arg-type]


def _tested(manifest: str, most: int) -> Dataset:
    """The first `most` test questions, all where there are fewer."""
    questions: Any = vqa_questions(manifest, "test")
    return questions.select(range(min(most, len(questions))))
