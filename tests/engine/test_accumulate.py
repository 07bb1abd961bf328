"""A batch in micro-batches is the same step as the batch at once, for every method."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.methods.options import STREAM_METHODS, TASK_METHODS
from vla_tune.stages import anchor, train

TOLERANCE = 2e-3
"""Of the change since the start, as a share of its norm: rounding, which Adam's division enlarges where gradients are small."""
QUICK = {
    "ewc": ["method.ewc.samples=2"],
    "agem": ["method.agem.samples=6", "method.agem.batch_size=3"],
    "warmup": ["method.warmup.steps=1"],
    "cotraining": ["method.cotraining.share=0.4"],
    "subspace": ["method.subspace.every=1"],
    "aegis": ["method.aegis.every=2"],
    "igsp": ["method.igsp.check_every=1", "method.igsp.least=1"],
}
WITHOUT = ("wise_ft",)
"""Trains nothing."""


@pytest.fixture(scope="module")
def anchored(tmp_path_factory):
    run = tmp_path_factory.mktemp("anchored")
    small = ["anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0", "anchor.gradients=8"]
    anchor.run(load_config("demo", small), run)
    return run / "anchor"


def change(run):
    """The trained weights of a plain run."""
    return load_file(run / "train" / "policy" / "model.safetensors")


def departure(one, other, start):
    """How far two sets of weights lie apart, as a share of what they moved by."""
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    moved = sum(float((one[name].double() - start[name].double()).square().sum()) for name in one)
    assert moved > 0
    return (apart / moved) ** 0.5


@pytest.fixture
def start(small_config):
    """The weights that every run starts from."""
    return Demonstrations(small_config()).model.state_dict()


@pytest.mark.parametrize("name", [name for name in TASK_METHODS if name not in WITHOUT])
def test_every_method_takes_a_batch_in_parts(small_config, anchored, start, tmp_path, name):
    runs = {}
    for parts in (1, 4):
        given = [f"method.name={name}", f"anchor.path={anchored}", f"train.accumulate={parts}", "train.steps=2", "train.lr=1e-4"]
        config = small_config(*given, "train.batch_size=4", "train.checkpoint_every=2", *QUICK.get(name, []))
        train.run(config, tmp_path / str(parts))
        runs[parts] = change(tmp_path / str(parts))
    assert departure(runs[1], runs[4], start) < TOLERANCE


def test_a_batch_statistic_of_some_tokens_is_refused(small_config, anchored, tmp_path):
    given = ["method.name=aegis", "method.aegis.samples=20", f"anchor.path={anchored}", "train.accumulate=2"]
    with pytest.raises(UserError, match=r"train\.accumulate: method\.aegis\.samples"):
        train.run(small_config(*given), tmp_path)


SHAPES = "{name: shapes, manifest: invented-shapes}, {name: textures, manifest: invented-textures}"
STREAM = [
    f"stream.tasks=[{SHAPES}]",
    "stream.router_width=32",
    "stream.router_samples=16",
    "train.steps=2",
    "train.batch_size=4",
    "train.warmup_steps=1",
]


def last_state(run):
    return load_file(run / "train" / "after" / "1.safetensors")


@pytest.mark.parametrize("name", STREAM_METHODS)
def test_every_way_to_learn_a_stream_takes_a_batch_in_parts(tmp_path, name):
    runs = {}
    for parts in (1, 4):
        config = load_config("stream-drawn", [*STREAM, f"method.name={name}", f"train.accumulate={parts}", *QUICK.get(name, [])])
        if name == "moe_adapters" and parts > 1:
            with pytest.raises(UserError, match="routers draw noise"):
                train.run(config, tmp_path / str(parts))
            return
        train.run(config, tmp_path / str(parts))
        runs[parts] = last_state(tmp_path / str(parts))
    assert runs[1].keys() == runs[4].keys()
    for key, tensor in runs[1].items():
        torch.testing.assert_close(tensor, runs[4][key], rtol=0, atol=TOLERANCE * max(1.0, float(tensor.double().abs().max())))
