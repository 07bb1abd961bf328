"""What `train --plan` foretells, against what training allocates, and that it needs neither weights, data nor an anchor."""

import gc
import itertools

import pytest
import torch
from vlas import published_smolvlm2

from vla_tune.anchors.artifact import load_anchor
from vla_tune.config import load_config
from vla_tune.engine.plan import UNUSED, plan
from vla_tune.engine.step import Step
from vla_tune.errors import UserError
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.learners.planned import blueprint
from vla_tune.methods import method_class
from vla_tune.methods.options import TASK_METHODS
from vla_tune.policies.devices import on_device
from vla_tune.stages import anchor as anchor_stage
from vla_tune.stages import train


@pytest.fixture(scope="module")
def anchored(small_dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("anchored")
    data = ["data.manifest=null", "data.repo_id=local/small", f"data.root={small_dataset}"]
    anchor_stage.run(load_config("demo", [*data, "anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", "anchor.gradients=8"]), run)
    return run / "anchor"


def planned(config, anchor=None):
    config = on_device(config)
    made = plan(config, blueprint(config), anchor)
    (step,) = (phase for phase in made.phases if phase.name == "forward and backward")
    return made, step


def tensors() -> dict[int, int]:
    """Bytes by storage of every tensor that lives."""
    gc.collect()
    alive = [one.untyped_storage() for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return {storage.data_ptr(): storage.nbytes() for storage in alive}


def peak_of(work) -> int:
    """By how much `work` raised what torch holds at its peak: all allocations and releases in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


LESS = ("train.precision=bfloat16", "train.activation_checkpointing=true")


@pytest.mark.parametrize(
    ("name", "more"), [("full", ()), ("full", LESS), ("subspace", ()), ("distillation", ()), ("aegis", ()), ("lora", ())]
)
def test_a_step_takes_what_was_planned(small_config, anchored, name, more):
    config = small_config(f"method.name={name}", "device=cpu", "train.batch_size=8", *more)
    folder = anchored if method_class(name).needs_anchor else None
    made, step = planned(config, folder)
    held = step.parts[f"kept by {name}"]

    learner = Demonstrations(config)
    learner.adapter.prepare_forward(
        learner.adapter.compute_dtype(config.train.precision), checkpointing=config.train.activation_checkpointing
    )
    before = tensors()
    method = method_class(name)(learner, config.method, load_anchor(folder) if folder else None)
    assert sum(p.nbytes for p in learner.model.parameters()) >= step.parts["parameters"]
    kept = sum(size for place, size in tensors().items() if place not in before)
    assert kept == pytest.approx(held, rel=0.1, abs=1e6)

    trainer = Step(method, *learner.optimizer(method.parameter_groups(config.train.lr)))
    batch = next(learner.batches(0, 0))

    def two_steps():  # the optimizer's state is there from the second on
        for _ in range(2):
            trainer(dict(batch))

    beside = (step.parts[what] for what in ("parameters", "demonstrations in memory", UNUSED))
    foretold = step.total - held - sum(beside)
    assert peak_of(two_steps) == pytest.approx(foretold, rel=0.1)
    assert made.peak("cpu").total >= step.total


@pytest.mark.parametrize("name", TASK_METHODS)
def test_every_method_can_be_planned(small_config, name, capsys, tmp_path):
    """Without an anchor and with VQA questions of which none is drawn."""
    assert train.run(small_config(f"method.name={name}", "train.batch_size=2"), tmp_path / "run", plan=True) is None
    told = capsys.readouterr().out
    assert "memory at the peak of each phase" in told
    assert "the most: " in told
    assert ("vla-tune anchor" in told) == method_class(name).needs_anchor
    assert max(map(len, told[told.index("memory at the peak") :].splitlines())) <= 80
    assert not (tmp_path / "run").exists()


def test_what_an_anchor_may_hold_is_no_less_than_what_one_holds(small_config, anchored):
    config = small_config("method.name=subspace", "method.subspace.energy=0.99", "train.batch_size=2")
    most, its = planned(config)[1], planned(config, anchored)[1]
    assert most.parts["kept by subspace"] >= its.parts["kept by subspace"] > 0


def test_a_plan_records_and_fetches_nothing(tmp_path, monkeypatch, capsys):
    """From the configuration of a VLM of real size, and a manifest whose demonstrations were never recorded."""
    monkeypatch.setenv("VLA_TUNE_CACHE", str(tmp_path / "cache"))
    vlm = published_smolvlm2(tmp_path / "vlm")
    settings = ["num_vlm_layers=16", "resize_imgs_with_padding=[512,512]", "chunk_size=50"]
    config = load_config("demo", [f"policy.base_vlm={vlm}", "train.batch_size=1", *(f"policy.settings.{one}" for one in settings)])
    assert train.run(config, tmp_path / "run", plan=True) is None
    told = capsys.readouterr().out
    assert "the anchor is not here" in told
    peak = float(told.partition("the most: ")[2].partition(" MB")[0].replace(",", ""))
    assert 7_000 < peak < 18_000  # 450 M parameters, their gradients and two moments, in float32
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "demonstrations").exists()
    assert not list(vlm.glob("*.safetensors"))


def test_what_cannot_be_made_is_told(small_config, tmp_path):
    with pytest.raises(UserError, match=r"policy\.settings\.chunk_sise"):
        train.run(small_config("policy.settings.chunk_sise=4"), tmp_path, plan=True)
    with pytest.raises(UserError, match="train_expert_only"):
        train.run(small_config("policy.settings.train_expert_only=true"), tmp_path, plan=True)
