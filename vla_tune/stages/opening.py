"""Opening what a stage works on: the model that a run starts from, made ready for its method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vla_tune.anchors.artifact import Anchor, check_anchor, load_anchor
from vla_tune.config import protects
from vla_tune.errors import UserError
from vla_tune.learners import kind_of, open_learner
from vla_tune.methods import method_class
from vla_tune.vlm.loading import load_processor
from vla_tune.vqa.dataset import vqa_questions
from vla_tune.vqa.replay import ReplayQuestions

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.methods.base import Method


def open_method(config: Config, anchor: Anchor | None = None) -> Method:
    """The method of a configuration on the model that it starts from; the same seed makes the same model."""
    torch.manual_seed(config.seed)
    learner = open_learner(config)
    kind = method_class(config.method.name, of_stream=bool(config.stream.tasks))
    if not config.stream.tasks:
        check_anchor(anchor, learner.model)
    memory = replay_questions(config, learner.base) if kind.needs_memory else None
    return kind(learner, config.method, anchor, memory)


def replay_questions(config: Config, base_vlm: str) -> ReplayQuestions:
    """The questions of the anchor split, for a method that goes on reading them."""
    return ReplayQuestions(vqa_questions(config.vqa.manifest, "anchor"), load_processor(base_vlm), config.seed)


def open_anchor(config: Config, run: Path) -> Anchor | None:
    """The anchor that `anchor.path` or the run holds, for a method that needs one; None for the others."""
    of_stream = bool(config.stream.tasks)
    if of_stream and protects(config) and kind_of(config) == "pictures":
        raise UserError("method.igsp.protect: it needs the anchor of a VLM, which a stream of pictures has none of; leave it out")
    needed = protects(config) if of_stream else method_class(config.method.name).needs_anchor
    return load_anchor(config.anchor.path or run / "anchor") if needed else None
