"""A training step of iGSP against plain LoRA of the same rank (peft's, on the same layers), in turns on the same batches.

    python benchmarks/streams.py [PIPELINE] [KEY=VALUE ...]

Told for the first task and, with as many old experts as earlier tasks would leave at most, for a later one; in both phases.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from vla_tune.cli import hush
from vla_tune.config import Config, load_config
from vla_tune.streams import open_learner
from vla_tune.streams.learner import Learner
from vla_tune.streams.training import Stream

TURNS, PER_TURN = 8, 3


def plain(config: Config) -> tuple[Learner, Any]:
    """The learner with peft's adapters, and its step."""
    learner = open_learner(config)
    layers = learner.layers()
    learner.model.requires_grad_(requires_grad=False)
    own = config.method.igsp
    inject_adapter_in_model(LoraConfig(r=own.rank, lora_alpha=own.alpha, target_modules=layers), learner.model)
    return learner, stepper(learner, [p for p in learner.model.parameters() if p.requires_grad], learner.loss)


def stepper(learner: Learner, parameters: list[torch.nn.Parameter], loss: Any) -> Any:
    """A function that takes a batch through one step."""
    optimizer, scheduler, clip_norm = learner.optimizer(parameters)

    def step(batch: Any) -> None:
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    return step


def ratio(config: Config, earlier: int, *, phase_2: bool) -> tuple[float, float]:
    """Seconds of plain LoRA's step, and how many times as long ours takes."""
    learner, theirs = plain(config)
    stream = Stream.open(config)
    strategy: Any = stream.strategy
    for task in range(earlier + 1):
        strategy.begin(task)
        if task < earlier or phase_2:
            halves = {name: [one for one in layer.down if one.endswith("-0")] for name, layer in strategy.pool.layers.items()}
            strategy.pool.keep(task, halves)
            strategy.identified[task]["ended"] = 0
    ours = stepper(stream.learner, strategy.parameters(), lambda batch: strategy.loss(earlier, batch))
    batches = learner.batches(0, 0)
    times: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(TURNS + 1):
        for number, step in enumerate((theirs, ours)):
            drawn = [next(batches) for _ in range(PER_TURN)]
            began = time.perf_counter()
            for batch in drawn:
                step(batch)
            if turn:  # the first warms up
                times[number].append((time.perf_counter() - began) / PER_TURN)
    pairs = [one / other for one, other in zip(times[1], times[0], strict=True)]
    return statistics.median(times[0]), statistics.median(pairs)


def main() -> None:
    """Measure and print."""
    hush()
    names = [argument for argument in sys.argv[1:] if "=" not in argument]
    config = load_config(names[0] if names else "stream-drawn", ["method.name=igsp", *(one for one in sys.argv[1:] if "=" in one)])
    for earlier in (0, len(config.stream.tasks) - 1):
        for phase_2 in (False, True):
            seconds, times = ratio(config, earlier, phase_2=phase_2)
            told = f"plain LoRA {seconds:.3f} s a step, iGSP {times:.2f} times as long"
            print(f"after {earlier} tasks, phase {1 + phase_2}: {told}", flush=True)


if __name__ == "__main__":
    main()
