"""What a method's training step costs beside plain fine-tuning's, measured side by side."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.config import FullConfig, MethodConfig
from vla_tune.console import progress
from vla_tune.methods import load_anchor, make_method, method_class

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

        self.method.policy.train()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        began = time.perf_counter()
        for batch in batches:
            self.method.backward(dict(batch)).item()
            torch.nn.utils.clip_grad_norm_(trained, self.clip_norm).item()
            self.method.step(self.optimizer)
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
    from vla_tune.engine.loop import as_floats
    from vla_tune.engine.setup import make_loader, make_memory, make_optimizer, make_start

    start = make_start(config)
    loader = make_loader(config, start.dataset, 0)
    batches = [start.processors[0](as_floats(batch)) for batch, _ in zip(loader, range(TURN), strict=False)]
    contestants = {}
    for label, (settings, anchor) in methods.items():
        policy = copy.deepcopy(start.policy)
        memory = make_memory(dataclasses.replace(config, method=settings), start.base_vlm)
        held = load_anchor(anchor) if method_class(settings.name).needs_anchor else None
        method = make_method(settings.name, policy, anchor=held, settings=settings, memory=memory)
        optimizer, _, clip_norm = make_optimizer(config, method)
        contestants[label] = Contestant(method, optimizer, clip_norm)
    return contestants, batches
