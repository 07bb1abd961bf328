"""What `train --plan` foretells, against what a training step allocates."""

import gc
import itertools

import pytest
import torch

from vla_tune.engine.loop import as_floats
from vla_tune.engine.plan import planned_bytes
from vla_tune.engine.setup import make_loader, make_optimizer, make_start
from vla_tune.methods import load_anchor, make_method, method_class
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
    start = make_start(config)
    before = tensors()
    anchor = load_anchor(anchored) if method_class(name).needs_anchor else None
    method = make_method(name, start.policy, anchor=anchor, settings=config.method)
    held = sum(size for place, size in tensors().items() if place not in before)
    plan = planned_bytes(config, start, method)
    keeps = next(size for what, size in plan.items() if what.startswith("held"))
    assert held == pytest.approx(keeps, rel=0.01, abs=1000)

    optimizer, _, _ = make_optimizer(config, method)
    batch = start.processors[0](as_floats(next(iter(make_loader(config, start.dataset, 0)))))
    start.policy.train()

    def two_steps():  # the optimizer's state is there from the second on
        for _ in range(2):
            method.backward(dict(batch))
            method.step(optimizer)

    foretold = sum(plan.values()) - plan["parameters"] - keeps
    assert 0.75 * foretold < peak_of(two_steps) <= foretold  # activations go while gradients come
