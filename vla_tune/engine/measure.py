"""What is measured beside the training loss: held-out action loss, answers to VQA questions, drift from the anchor."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.anchors.passes import drift, stock_moments
from vla_tune.console import warn
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.policies.loading import vlm_is_whole
from vla_tune.vlm.answering import answer
from vla_tune.vlm.loading import load_processor
from vla_tune.vqa.dataset import metric_of, vqa_questions
from vla_tune.vqa.scorers import scores

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import Config
    from vla_tune.methods.base import Method


class Measure:
    """Measures a policy in the middle of its training, and leaves the training as it was.

    Raises:
        UserError: the manifest has fewer questions than are asked.

    """

    def __init__(self, config: Config, method: Method) -> None:
        assert isinstance(method.learner, Demonstrations)
        self._config, self._method, self._learner = config, method, method.learner
        self._questions = vqa_questions(config.vqa.manifest, "test", self._asked) if self._asked else None
        self._anchored = anchor_questions(method.anchor, self._asked) if self._asked and method.anchor else None
        if not self._asked and not self._learner.heldout:
            warn("train.eval_every: there is nothing to measure; set data.heldout to an episode or more, or train.eval_questions")

    def __call__(self) -> dict[str, float]:
        """`heldout_loss`, `vqa_accuracy` and `drift_vqa`, each where it can be measured."""
        found: dict[str, float] = {}
        with undisturbed(self._method.model):
            heldout = self._learner.heldout_loss()
            if heldout is not None:
                found["heldout_loss"] = heldout
            if self._questions is not None:
                found["vqa_accuracy"] = self._accuracy(self._questions)
            if self._anchored is not None and self._method.anchor:
                found["drift_vqa"] = self._drift(self._anchored, self._method.anchor)
        return found

    @functools.cached_property
    def _asked(self) -> int:
        """How many questions the policy's VLM is asked; none where it has lost the layers that it would answer with."""
        asked = self._config.train.eval_questions
        if asked and not vlm_is_whole(self._learner.model):
            warn("train.eval_questions is left out: the policy has cut its VLM's upper layers, and without them it cannot answer")
            return 0
        return asked

    @functools.cached_property
    def _processor(self) -> Any:
        return load_processor(self._learner.base)

    def _accuracy(self, questions: Dataset) -> float:
        vqa, vlm = self._config.vqa, self._learner.adapter.vlm
        settings: dict[str, Any] = {"batch_size": vqa.batch_size, "max_new_tokens": vqa.max_new_tokens, "description": ""}
        return float(scores(metric_of(vqa.manifest), answer(vlm, self._processor, questions, **settings), questions).mean())

    def _drift(self, questions: Dataset, anchor: Anchor) -> float:
        moments = stock_moments(self._learner.adapter.vlm, self._processor, questions, self._config.anchor.batch_size, "")
        layers = drift(moments, anchor.stock_mean, anchor.stock_std)
        return sum(layers) / len(layers)


def measure_of(config: Config, method: Method) -> Measure | None:
    """What `train.eval_every` asks for; None where it asks for nothing, and for a stream, whose evaluations measure after each task."""
    return Measure(config, method) if config.train.eval_every and method.trains and not config.stream.tasks else None


def anchor_questions(anchor: Anchor, count: int) -> Dataset:
    """The first `count` of the questions that an anchor was taken on, or all of them."""
    taken = anchor.artifact.config
    samples = int(anchor.artifact.metrics["samples"])
    return vqa_questions(taken["anchor"].get("manifest") or taken["vqa"]["manifest"], "anchor", min(count, samples))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside the block, a model in evaluation mode; after it, every module's mode and torch's generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes:
            module.training = training
