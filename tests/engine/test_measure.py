"""What is measured in the middle of a training leaves the training as it was."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_tune.anchors.passes import stock_moments
from vla_tune.engine import checkpoint
from vla_tune.engine.measure import Measure, anchor_questions
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.stages import train
from vla_tune.vlm.loading import load_processor

MEASURED = ("data.heldout=0.34", "train.eval_every=2", "train.eval_questions=6", "vqa.batch_size=4")


def of(learner, anchor=None):
    return Measure(learner.config, SimpleNamespace(learner=learner, model=learner.model, anchor=anchor))


def anchor_of(learner, samples=4):
    """An anchor of the VLM as it is, with as much of its artifact as is read."""
    artifact = SimpleNamespace(config=learner.config.to_dict(), metrics={"samples": samples})
    anchor = SimpleNamespace(artifact=artifact)
    moments = stock_moments(learner.adapter.vlm, load_processor(learner.base), anchor_questions(anchor, samples), 4, "")
    anchor.stock_mean, anchor.stock_std = [one.mean.float() for one in moments], [one.std().float() for one in moments]
    return anchor


def test_a_measurement_repeats_and_changes_nothing(small_config, capsys):
    learner = Demonstrations(small_config(*MEASURED))
    learner.heldout_loss()  # the first time, frames are decoded, and that is told
    learner.model.train()
    learner.adapter.vlm.lm_head.eval()
    measure = of(learner, anchor_of(learner, samples=6))
    modes = [module.training for module in learner.model.modules()]
    capsys.readouterr()
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = measure()
    assert capsys.readouterr().out == ""  # no bars or lines amid those of the training
    assert [module.training for module in learner.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]
    assert all(p.grad is None for p in learner.model.parameters())
    torch.manual_seed(7)
    assert measure() == first
    assert first.keys() == {"heldout_loss", "vqa_accuracy", "drift_vqa"}
    assert first["vqa_accuracy"] >= 0.5  # the VLM that is shipped knows most answers
    assert first["drift_vqa"] == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        for p in learner.adapter.vlm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    moved = measure()
    assert moved["drift_vqa"] > 0.01
    assert moved["vqa_accuracy"] < first["vqa_accuracy"]
    assert moved["heldout_loss"] != first["heldout_loss"]


def test_a_cut_vlm_is_not_asked(small_config, capsys):
    learner = Demonstrations(small_config(*MEASURED, "policy.settings.num_vlm_layers=2"))
    assert of(learner)().keys() == {"heldout_loss"}
    assert capsys.readouterr().err.count("train.eval_questions is left out: the policy has cut its VLM") == 1


def test_nothing_to_measure_is_told(small_config, capsys):
    learner = Demonstrations(small_config("data.heldout=0", "train.eval_every=2"))
    assert of(learner)() == {}
    assert "train.eval_every: there is nothing to measure; set data.heldout" in capsys.readouterr().err


def test_training_is_the_same_with_and_without(small_config, tmp_path):
    best = ("train.steps=6", "train.keep_best=true", "train.keep_checkpoints=1", "train.lr=0.1", "train.checkpoint_every=5")
    plain = train.run(small_config("train.steps=6", "train.lr=0.1", "data.heldout=0.34"), tmp_path / "plain")
    measured = train.run(small_config(*MEASURED, *best), tmp_path / "measured")
    one, other = (load_file(artifact.path / "policy" / "model.safetensors") for artifact in (plain, measured))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    rows = [json.loads(line) for line in (measured.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if {"heldout_loss", "vqa_accuracy"} <= row.keys()] == [2, 4, 6]
    assert rows[-1]["heldout_loss"] == measured.metrics["heldout_loss"] == plain.metrics["heldout_loss"]
    loss, step = min((row["heldout_loss"], row["step"]) for row in rows if "heldout_loss" in row)
    assert checkpoint.best(measured.path) == (step, loss)
    assert checkpoint.finished(measured.path) == sorted({step, 6})
