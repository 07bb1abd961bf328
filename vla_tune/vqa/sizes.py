"""Questions of which only the sizes count."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from vla_tune.data.manifests import BenchmarkManifest, load_manifest
from vla_tune.data.scenes import IMAGE_SIZE
from vla_tune.vlm.batches import replied_inputs
from vla_tune.vqa.replay import ReplayQuestions

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import ProcessorMixin

PHOTO = (640, 480)
"""The size of most of the benchmarks' pictures."""
TEXT, ANSWER = "Is there a small red ball to the left of the large blue cube?", "yes"
MANY = 1_000_000


def example_question(processor: ProcessorMixin, manifest: str) -> dict[str, Tensor]:
    """A blank picture as large as a manifest's, with a question and its answer, as the VLM's forward takes them."""
    from PIL import Image

    size = PHOTO if isinstance(load_manifest(manifest), BenchmarkManifest) else (IMAGE_SIZE, IMAGE_SIZE)
    return replied_inputs(processor, [Image.new("RGB", size)], [TEXT], [ANSWER])


class SizedQuestions(ReplayQuestions):
    """Any number of questions as large as the `example`."""

    def __init__(self, example: dict[str, Tensor]) -> None:
        self._example = example
        self.questions = cast("Dataset", _Many())

    def draw(self, number: int, count: int, among: int | None = None, part: slice = slice(None)) -> dict[str, Tensor]:  # noqa: ARG002
        return self.at(list(range(count))[part])

    def at(self, rows: list[int]) -> dict[str, Tensor]:
        return {name: torch.zeros(len(rows), *tensor.shape[1:], dtype=tensor.dtype) for name, tensor in self._example.items()}


class _Many:
    def __len__(self) -> int:
        return MANY
