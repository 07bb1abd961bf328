"""Streams small enough for a test: drawn pictures, the shipped CLIP, a few steps."""

from __future__ import annotations

import pytest

from vla_tune.config import load_config

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


@pytest.fixture
def quick_overrides():
    """What makes a stream quick."""
    return QUICK


@pytest.fixture
def quick(quick_overrides):
    """A function from task names and further overrides to the configuration of a quick stream."""
    return lambda *names, more=(): load_config("stream-drawn", [*quick_overrides, tasks(*names), *more])
