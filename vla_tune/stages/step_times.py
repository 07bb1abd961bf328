"""What a method's training step costs beside plain fine-tuning's, measured side by side."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.anchors.artifact import load_anchor
from vla_tune.config import FullConfig, MethodConfig
from vla_tune.console import progress
from vla_tune.engine.step import Step
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.learners.policy import PolicyLearner
from vla_tune.methods import method_class
from vla_tune.stages.opening import replay_questions

if TYPE_CHECKING:
    from vla_tune.config import Config

REFERENCE = "full"
TURN = 10
"""Steps of one turn; also how many batches are prepared, so that every turn sees the same ones."""
PAIRS = 10
WARM_UP = 3


@dataclasses.dataclass
class Contestant:
    """A method's training step on its own copy of the starting policy; the seconds a step of each turn."""

    step: Step
    step_s: list[float] = dataclasses.field(default_factory=list)

    def turn(self, batches: list[dict[str, Any]]) -> float:
        """One training step per batch; the mean step in seconds, with what it left a GPU to do."""
        began = time.perf_counter()
        for batch in batches:
            self.step(dict(batch))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / len(batches)


def step_ratio(config: Config, methods: dict[str, tuple[MethodConfig, Path]]) -> dict[str, tuple[float, float]]:
    """Median step in seconds, and its ratio to plain fine-tuning's, by label; a method that does not train has none.

    Plain fine-tuning and the methods take turns of `TURN` steps on the same batches in one process, in alternating
    order; a ratio is the median over `PAIRS` rounds. Data loading is left out.

    Args:
        config: the run's configuration, whose `method` does not matter.
        methods: label to a method with its options, and the anchor artifact for those that need one.

    """
    trained = {label: entry for label, entry in methods.items() if method_class(entry[0].name).trains}
    plain = next((label for label, (method, _) in trained.items() if method.name == REFERENCE and method.full == FullConfig()), "")
    entered = trained if plain else {"": (MethodConfig(name=REFERENCE), next(iter(methods.values()))[1]), **trained}
    contestants, batches = _contestants(config, entered)
    with progress("step times", PAIRS, "rounds") as counter:
        for one in contestants.values():
            one.turn(batches[:WARM_UP])
        for number in range(PAIRS):
            order = list(contestants.values())
            for one in order if number % 2 == 0 else reversed(order):
                one.step_s.append(one.turn(batches))
            counter.advance()
    full = contestants[plain].step_s
    return {label: (statistics.median(contestants[label].step_s), _ratio(contestants[label].step_s, full)) for label in trained}


def _ratio(times: list[float], reference: list[float]) -> float:
    return statistics.median(own / full for own, full in zip(times, reference, strict=True))


def _contestants(config: Config, methods: dict[str, tuple[MethodConfig, Path]]) -> tuple[dict[str, Contestant], list[dict[str, Any]]]:
    learner = Demonstrations(config)
    batches = list(itertools.islice(learner.batches(0, 0), TURN))
    contestants = {}
    for label, (settings, anchor) in methods.items():
        kind = method_class(settings.name)
        own = copy.copy(learner)
        PolicyLearner.__init__(own, copy.deepcopy(learner.model))
        memory = replay_questions(config, learner.base) if kind.needs_memory else None
        method = kind(own, settings, load_anchor(anchor) if kind.needs_anchor else None, memory)
        contestants[label] = Contestant(Step(method, *own.optimizer(method.parameter_groups(config.train.lr))))
    return contestants, batches
