"""Training steps in turns on the same batches: plain fine-tuning beside lerobot's own, and methods beside plain fine-tuning."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from benchmarks.rounds import Rounds, Turn, alternate
from vla_tune.anchors.artifact import Anchor
from vla_tune.config import Config, MethodConfig
from vla_tune.engine.step import Step
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.learners.policy import NOISE, TIME
from vla_tune.learners.start import make_start
from vla_tune.methods import method_class
from vla_tune.policies.devices import resolve_device

Batches = list[dict[str, Any]]

METHODS = {
    "subspace": {},
    "subspace, update only": {"project": "update"},
    "aegis": {},
    "lora": {},
    "distillation": {},
}
"""What is measured against `full`, with options of the method that are not its defaults."""


@dataclass(frozen=True)
class Size:
    """A size to measure at.

    anchor: of the configuration's VLM. rounds: that count. steps: of a turn; `long_steps`: of a method that does not do the same in
    every step.
    """

    name: str
    config: Config
    anchor: Anchor
    rounds: int
    steps: int
    long_rounds: int
    long_steps: int


class LerobotStep:
    """lerobot's own step on the same start."""

    def __init__(self, config: Config) -> None:
        device = resolve_device(config.device)
        policy = make_start(dataclasses.replace(config, device=device)).policy
        preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
        optimizer = preset.build(policy.get_optim_params())
        self._accelerator = Accelerator(cpu=device == "cpu", step_scheduler_with_optimizer=False)
        prepared = self._accelerator.prepare(policy, optimizer, schedule.build(optimizer, config.train.steps))
        self._policy, self._optimizer, self._scheduler = prepared
        self._clip_norm = preset.grad_clip_norm
        names = ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")
        self._tracker = MetricsTracker(config.train.batch_size, 1, 1, {name: AverageMeter(name) for name in names})

    def __call__(self, batch: dict[str, Any]) -> None:
        """One update."""
        update_policy(self._tracker, self._policy, batch, self._optimizer, self._clip_norm, self._accelerator, self._scheduler)


def method_step(config: Config, settings: MethodConfig, anchor: Anchor | None) -> Step:
    """A method's step on its own copy of the start."""
    torch.manual_seed(config.seed)
    learner = Demonstrations(config)
    method = method_class(settings.name)(learner, settings, anchor)
    return Step(method, *learner.optimizer(method.parameter_groups(config.train.lr)))


def full_step(config: Config, *, reference: bool = False) -> Step:
    """Plain fine-tuning's."""
    train = dataclasses.replace(config.train, reference=reference)
    return method_step(dataclasses.replace(config, train=train), MethodConfig(name="full"), None)


def batches_of(config: Config, count: int) -> Batches:
    """The first training batches, with the noise and the times of our draws."""
    return list(itertools.islice(Demonstrations(config).batches(0, 0), count))


def undrawn(batches: Batches) -> Batches:
    """The same as lerobot draws for them itself."""
    return [{key: value for key, value in batch.items() if key not in (NOISE, TIME)} for batch in batches]


def turn_of(step: Callable[[dict[str, Any]], Any], batches: Batches) -> Turn:
    """Steps of one turn."""

    def turn() -> None:
        for batch in batches:
            step(dict(batch))

    return turn


def measure(size: Size) -> Iterator[Rounds]:
    """Two at a time, so that no more than two policies with their optimizers are held."""
    config = size.config
    batches = batches_of(config, size.long_steps)
    short = batches[: size.steps]
    yield _pair(size, "full, reference against lerobot", lambda: full_step(config, reference=True), LerobotStep, undrawn(short))
    yield _pair(size, "full against lerobot", lambda: full_step(config), LerobotStep, short)
    for label, options in METHODS.items():
        settings = _settings(label.partition(",")[0], options)
        anchor = size.anchor if method_class(settings.name).needs_anchor else None
        ours = partial(method_step, config, settings, anchor)
        long = settings.name == "subspace"  # its changes are projected every few steps
        yield _pair(size, f"{label} against full", ours, full_step, batches if long else short, long=long)


def _pair(size: Size, label: str, ours: Callable[[], Step], theirs: Any, batches: Batches, *, long: bool = False) -> Rounds:
    others = undrawn(batches) if theirs is LerobotStep else batches
    steps = [(ours(), batches), (theirs(size.config), others)]
    for step, own in steps:
        turn_of(step, own[:1])()  # warms up
    turns = [turn_of(step, own) for step, own in steps]
    rounds = size.long_rounds if long else size.rounds
    return alternate(f"{size.name}: {label}", *turns, rounds, warm_up=False, units=(len(batches), len(batches)))


def _settings(name: str, options: dict[str, Any]) -> MethodConfig:
    settings = MethodConfig(name=name)
    return dataclasses.replace(settings, **{name: dataclasses.replace(getattr(settings, name), **options)})
