"""What `train --plan` foretells, against what a training step allocates."""

import gc
import itertools

import pytest
import torch

from vla_tune.anchors.artifact import load_anchor
from vla_tune.engine.plan import planned_bytes
from vla_tune.engine.step import Step
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.methods import method_class
from vla_tune.stages import anchor as anchor_stage


@pytest.fixture(scope="module")
def anchored(small_dataset, tmp_path_factory):
    from vla_tune.config import load_config

    run = tmp_path_factory.mktemp("anchored")
    data = ["data.manifest=null", "data.repo_id=local/small", f"data.root={small_dataset}"]
    anchor_stage.run(load_config("demo", [*data, "anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", "anchor.gradients=8"]), run)
    return run / "anchor"


def tensors() -> dict[int, int]:
    """Bytes by storage of every tensor that lives."""
    gc.collect()
    alive = [one.untyped_storage() for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in alive}


def peak_of(work) -> int:
    """By how much `work` raised what torch holds at its peak: all allocations and releases in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("name", ["full", "subspace", "distillation", "aegis"])
def test_a_step_takes_what_was_planned(small_config, anchored, name):
    config = small_config(f"method.name={name}", "train.batch_size=8")
    learner = Demonstrations(config)
    before = tensors()
    anchor = load_anchor(anchored) if method_class(name).needs_anchor else None
    method = method_class(name)(learner, config.method, anchor)
    held = sum(size for place, size in tensors().items() if place not in before)
    plan = planned_bytes(config, method)
    keeps = next(size for what, size in plan.items() if what.startswith("held"))
    assert held == pytest.approx(keeps, rel=0.01, abs=1000)

    step = Step(method, *learner.optimizer(method.parameter_groups(config.train.lr)))
    batch = next(learner.batches(0, 0))

    def two_steps():  # the optimizer's state is there from the second on
        for _ in range(2):
            step(dict(batch))

    foretold = sum(plan.values()) - plan["parameters"] - keeps
    assert 0.75 * foretold < peak_of(two_steps) <= foretold  # activations go while gradients come
