"""A run that was killed and resumed is the run that was not, to the bit, across epochs, whatever reads the data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vla_tune.stages import train

STEPS = 20
"""Of four samples each; an epoch has 30."""


def rows(run):
    lines = (run / "train" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.endswith("_s")} for line in lines]


def tensors(run):
    """Everything that a later step depends on, and what is exported."""
    files = sorted((run / "train" / "checkpoints" / str(STEPS)).rglob("*.safetensors"))
    files += [run / "train" / "policy" / "model.safetensors"]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(one, other):
    assert rows(one) == rows(other)
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    assert len(left) > 100
    assert [name for name, tensor in left.items() if not torch.equal(tensor, right[name])] == []


@pytest.fixture
def long(small_config):
    """A function from the number of workers to a run over more than two epochs."""
    given = [f"train.steps={STEPS}", "train.checkpoint_every=3", "data.cache_mb=0", "train.keep_checkpoints=1"]
    return lambda workers: small_config(*given, f"data.workers={workers}")


def killed(overrides, run, after):
    """Train in a process of its own, which is killed once it has written a checkpoint of step `after` or later."""
    command = [sys.executable, "-m", "vla_tune", "train", "demo", *overrides, "--out", str(run)]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        folder, ends = run / "train.partial" / "checkpoints", time.monotonic() + 300
        while process.poll() is None and time.monotonic() < ends:
            if folder.is_dir() and any(one.name.isdigit() and int(one.name) >= after for one in folder.iterdir()):
                os.kill(process.pid, signal.SIGKILL)
                return
            time.sleep(0.01)
        raise AssertionError(f"the run ended by itself ({process.poll()})")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(long, overrides, tmp_path):
    train.run(long(0), tmp_path / "whole")
    given = [f"train.steps={STEPS}", "train.checkpoint_every=3", "data.cache_mb=0", "train.keep_checkpoints=1", "data.workers=2"]
    killed([*overrides, *given], tmp_path / "parts", after=9)
    assert not (tmp_path / "parts" / "train").exists()
    torch.manual_seed(99)
    train.run(long(2), tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
