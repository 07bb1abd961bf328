"""An anchor as a user takes it, and what it takes to take one beside training on as many samples."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from benchmarks.rounds import Rounds, alternate
from benchmarks.steps import batches_of, full_step, turn_of
from vla_tune.anchors.artifact import Anchor, load_anchor
from vla_tune.anchors.taking import Layers, take_anchor
from vla_tune.config import Config
from vla_tune.policies import adapt
from vla_tune.policies.devices import on_device
from vla_tune.policies.starting import starting_policy
from vla_tune.stages import anchor
from vla_tune.vlm.parts import linears
from vla_tune.vqa.dataset import vqa_questions

PREPARED = 10
"""Batches that are trained on again and again."""


def anchor_of(config: Config, folder: Path) -> Anchor:
    """Taken as `vla-tune anchor` does."""
    anchor.run(config, folder)
    return load_anchor(folder / "anchor")


def measure(config: Config, rounds: int) -> Rounds:
    """Seconds of one of the anchor's questions, all passes and decompositions together, to those of one training sample.

    No robot frames are read: they only tell how far the two overlap.
    """
    settings, size = on_device(config).anchor, config.train.batch_size
    questions = vqa_questions(config.anchor.manifest or config.vqa.manifest, "anchor", settings.samples)
    policy, base = starting_policy(on_device(config))
    adapter = adapt(policy)
    trained = [name for name, module in linears(adapter.vlm).items() if module.weight.requires_grad]
    count = math.ceil(settings.samples / size)
    batches = list(itertools.islice(itertools.cycle(batches_of(config, PREPARED)), count))
    return alternate(
        "anchor: a sample against a training sample",
        lambda: take_anchor(adapter, base, questions, Layers(trained, trained), settings, lambda: None),
        turn_of(full_step(config), batches),
        rounds,
        warm_up=False,
        units=(settings.samples, count * size),
    )
