"""Streams small enough for a test: drawn pictures, the shipped CLIP, a few steps."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import pytest
import torch
from small_runs import write_manifests

from vla_tune.config import load_config
from vla_tune.engine.signals import Interrupted

QUICK = [
    "train.steps=6",
    "train.batch_size=8",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "train.warmup_steps=1",
    "method.igsp.check_every=2",
    "method.igsp.least=2",
    "vqa.questions=16",
    "vqa.bootstrap=50",
    "stream.router_width=64",
    "stream.router_samples=48",
]


def tasks(*names):
    """The tasks of these names of the pipeline stream-drawn, as an override."""
    known = {
        "shapes": "invented-shapes",
        "again": "invented-shapes-again",
        "mirrored": "invented-shapes-mirrored",
        "textures": "invented-textures",
    }
    return f"stream.tasks=[{', '.join(f'{{name: {name}, manifest: {known[name]}}}' for name in names)}]"


@pytest.fixture(scope="session")
def few_pictures(tmp_path_factory):
    """A folder with the shipped manifests of drawn pictures under their names, each with fewer pictures of a class."""
    return write_manifests(tmp_path_factory.mktemp("manifests"))


@pytest.fixture
def quick_overrides(few_pictures):
    """What makes a stream quick."""
    return [*QUICK, f"stream.folder={few_pictures}"]


@pytest.fixture
def quick(quick_overrides):
    """A function from task names and further overrides to the configuration of a quick stream."""
    return lambda *names, more=(): load_config("stream-drawn", [*quick_overrides, tasks(*names), *more])


@pytest.fixture
def stopped_at():
    """A function to a context in which training is interrupted (Ctrl-C) in a learner's step `step`, counted over all tasks."""

    @contextmanager
    def context(learner, step):
        losses, plain = [0], learner.loss

        def loss(self, batch):
            if torch.is_grad_enabled():  # not a look at the routers
                losses[0] += 1
                if losses[0] == step:
                    os.kill(os.getpid(), signal.SIGINT)
            return plain(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner, "loss", loss)
            with pytest.raises(Interrupted):
                yield

    return context
