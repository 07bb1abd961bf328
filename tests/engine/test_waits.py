"""Between two log rows our code waits for nothing on the device."""

from __future__ import annotations

import itertools

import pytest
import torch
from waits import Waits

from vla_tune.config import load_config
from vla_tune.engine.step import Step
from vla_tune.methods.options import TASK_METHODS
from vla_tune.stages import anchor
from vla_tune.stages.opening import open_anchor, open_method

QUICK = ["method.ewc.samples=2", "method.agem.samples=6", "method.agem.batch_size=3", "method.subspace.every=1", "method.aegis.samples=9"]
STREAM = ["stream.router_width=32", "stream.router_samples=16", "train.batch_size=4", "method.igsp.check_every=40"]


@pytest.fixture(scope="module")
def anchored(tmp_path_factory):
    run = tmp_path_factory.mktemp("anchored")
    anchor.run(load_config("demo", ["anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", "anchor.gradients=8"]), run)
    return run / "anchor"


def waits_of(method, config, batches, steps=2):
    """Where two steps of a method wait."""
    learner = method.learner
    step = Step(method, *learner.optimizer(method.parameter_groups(config.train.lr)))
    on_device = list(itertools.islice(batches, steps))
    with Waits() as waits:
        for batch in on_device:
            step(batch)
    return waits.ours


@pytest.mark.parametrize("name", [name for name in TASK_METHODS if name != "wise_ft"])
def test_a_step_waits_for_nothing(small_config, anchored, tmp_path, name):
    config = small_config(f"method.name={name}", f"anchor.path={anchored}", "train.batch_size=2", *QUICK)
    method = open_method(config, open_anchor(config, tmp_path))
    assert waits_of(method, config, method.learner.batches(0, 0)) == []


@pytest.mark.parametrize("name", ["full", "lora_per_task", "shared", "igsp"])
def test_a_step_of_a_stream_waits_for_nothing(name):
    config = load_config("stream-drawn", [*STREAM, f"method.name={name}"])
    method = open_method(config)
    method.begin(0)
    batches = list(itertools.islice(method.learner.batches(0, 0), 2))
    method.terms(batches[0])  # prompts are tokenised once
    assert waits_of(method, config, batches) == []


def test_a_wait_of_ours_is_found(small_config, monkeypatch):
    from vla_tune.learners.policy import PolicyLearner

    config = small_config("train.batch_size=2")
    method = open_method(config)
    original = PolicyLearner.with_draws
    batch = next(method.learner.batches(0, 0))
    assert original
    with Waits() as waits:
        exec(compile("value = tensor.sum().item()", "/x/vla_tune/somewhere.py", "exec"), {"tensor": batch["action"]})  # noqa: S102
        exec(compile("value = tensor[tensor > 0]", "/x/vla_tune/somewhere.py", "exec"), {"tensor": torch.ones(3)})  # noqa: S102
    assert len(waits.ours) == 2
