"""A training step of iGSP against plain LoRA of the same rank (peft's, on the same layers), in turns on the same batches.

    python benchmarks/streams.py [PIPELINE] [KEY=VALUE ...]
    python benchmarks/streams.py --run RUN

Told for the first task and for the last, in both phases: with the experts that RUN's tasks left, or, without a run, with one in every
layer from every task.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model

from vla_tune.artifacts.folder import read_artifact
from vla_tune.cli import reported
from vla_tune.config import Config, completed, load_config, structured
from vla_tune.engine import after
from vla_tune.engine.step import Step
from vla_tune.errors import UserError
from vla_tune.learners import open_learner
from vla_tune.methods.base import Method
from vla_tune.stages.opening import open_method

TURNS, PER_TURN = 8, 3


class PlainLoRA(Method):
    """peft's adapters on the same layers, and the task's loss."""

    name = "plain-lora"

    def prepare(self) -> None:
        learner: Any = self.learner
        layers, own = learner.layers(), self.settings.igsp
        learner.model.requires_grad_(requires_grad=False)
        inject_adapter_in_model(LoraConfig(r=own.rank, lora_alpha=own.alpha, target_modules=layers), learner.model)


def stepper(method: Method) -> Step:
    """What takes a batch through one step."""
    learner = method.learner
    return Step(method, *learner.optimizer(method.parameter_groups(learner.config.train.lr)))


def begun(config: Config, run: Path | None, task: int, *, phase_2: bool) -> Method:
    """The method in one phase of a task."""
    method: Any = open_method(config)
    if run is None:
        _pretend(method, task, phase_2=phase_2)
    else:
        if task or phase_2:
            after.restore(run / "train", task if phase_2 else task - 1, method)
        (method.resume if phase_2 else method.begin)(task)
    method.task = task
    return method


def _pretend(method: Any, task: int, *, phase_2: bool) -> None:
    """Every task so far keeps one expert in every layer."""
    for number in range(task + 1):
        method.begin(number)
        if number < task or phase_2:
            first = {name: [one for one in layer.down if one.endswith("-0")] for name, layer in method.pool.layers.items()}
            method.pool.keep(number, first)
            if method.own.routing == "task":
                method.pool.settle(number, {name: dict.fromkeys(layer.down, 0.5) for name, layer in method.pool.layers.items()})
            method.identified[number]["ended"] = 0


def ratio(config: Config, run: Path | None, task: int, *, phase_2: bool) -> tuple[float, float]:
    """Seconds of plain LoRA's step, and how many times as long ours takes."""
    learner = open_learner(config)
    theirs, ours = stepper(PlainLoRA(learner, config.method)), stepper(begun(config, run, task, phase_2=phase_2))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="PIPELINE | KEY=VALUE")
    parser.add_argument("--run", type=Path, help="a folder with a finished `train` of igsp")
    asked = parser.parse_args()
    if asked.run and asked.given:
        parser.error("a run is measured as it was trained: give --run alone")
    with reported("the same command again"):
        measure(asked.run, asked.given)


def configuration(run: Path | None, given: list[str]) -> Config:
    """The run's, or that of a pipeline with overrides; what the measurement does not cover is refused."""
    if run:
        config = structured(Config, completed(read_artifact(run / "train", "train", "vla-tune train").config), [], str(run))
    else:
        names = [one for one in given if "=" not in one] or ["stream-drawn"]
        config = load_config(names[0], [one for one in given if "=" in one])
    own = config.method.igsp
    if config.method.name != "igsp" or own.protect or own.sharing == "similar":
        raise UserError("only steps of method.name=igsp are measured here, without method.igsp.protect or method.igsp.sharing=similar")
    return config


def measure(run: Path | None, given: list[str]) -> None:
    """Time both phases of the first task and of the last, and print."""
    config = configuration(run, given)
    for task in (0, len(config.stream.tasks) - 1):
        for phase_2 in (False, True):
            seconds, times = ratio(config, run, task, phase_2=phase_2)
            told = f"plain LoRA {seconds:.3f} s a step, iGSP {times:.2f} times as long"
            print(f"task {task + 1}, phase {1 + phase_2}: {told}", flush=True)


if __name__ == "__main__":
    main()
