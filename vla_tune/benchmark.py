"""What a method's training step costs beside plain fine-tuning's, measured side by side."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.console import progress

if TYPE_CHECKING:
    import torch

    from vla_tune.config import Config
    from vla_tune.methods.base import Method

REFERENCE = "full"
TURN = 10
"""Steps of one turn; also how many batches are prepared, so that every turn sees the same ones."""
PAIRS = 10
WARM_UP = 3


@dataclasses.dataclass
class Contestant:
    """A method on its own copy of the starting policy, with its optimizer; the seconds a step of each turn."""

    method: Method
    optimizer: torch.optim.Optimizer
    clip_norm: float
    step_s: list[float] = dataclasses.field(default_factory=list)

    def turn(self, batches: list[dict[str, Any]]) -> float:
        """One training step a batch; the mean step in seconds."""
        import torch

        policy = self.method.policy
        policy.train()
        began = time.perf_counter()
        for batch in batches:
            self.method.backward(dict(batch)).item()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), self.clip_norm).item()
            self.method.step(self.optimizer)
        return (time.perf_counter() - began) / len(batches)


def step_ratio(config: Config, method_names: list[str], anchor_path: Path) -> dict[str, tuple[float, float]]:
    """Median step in seconds, and its ratio to `full`'s, by method.

    `full` and the methods take turns of `TURN` steps on the same batches in one process, in alternating order; a ratio
    is the median over `PAIRS` rounds. Data loading is left out.

    Args:
        config: the run's configuration; its method's name does not matter.
        anchor_path: an anchor artifact, for the methods that need one.

    """
    contestants, batches = _contestants(config, list(dict.fromkeys([REFERENCE, *method_names])), anchor_path)
    with progress("step times", PAIRS, "rounds") as counter:
        for one in contestants.values():
            one.turn(batches[:WARM_UP])
        for number in range(PAIRS):
            order = list(contestants.values())
            for one in order if number % 2 == 0 else reversed(order):
                one.step_s.append(one.turn(batches))
            counter.advance()
    reference = contestants[REFERENCE].step_s
    medians = {name: (statistics.median(one.step_s), _ratio(one.step_s, reference)) for name, one in contestants.items()}
    return {name: medians[name] for name in method_names}


def _ratio(times: list[float], reference: list[float]) -> float:
    return statistics.median(own / full for own, full in zip(times, reference, strict=True))


def _contestants(config: Config, names: list[str], anchor_path: Path) -> tuple[dict[str, Contestant], list[dict[str, Any]]]:
    from vla_tune.methods import load_anchor, make_method
    from vla_tune.training.loop import as_floats
    from vla_tune.training.setup import make_loader, make_optimizer, make_start

    start = make_start(config)
    loader = make_loader(config, start.dataset, 0)
    batches = [start.processors[0](as_floats(batch)) for batch, _ in zip(loader, range(TURN), strict=False)]
    anchor = load_anchor(anchor_path)
    contestants = {}
    for name in names:
        policy = copy.deepcopy(start.policy)
        method = make_method(name, policy, anchor=anchor, settings=dataclasses.replace(config.method, name=name))
        optimizer, _, clip_norm = make_optimizer(config, method)
        contestants[name] = Contestant(method, optimizer, clip_norm)
    return contestants, batches
