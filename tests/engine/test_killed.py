"""A training that is killed in the middle of writing a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import torch
from safetensors.torch import load_file

from vla_tune.engine import checkpoint
from vla_tune.stages import train

KILLED = """
import json, os, signal, sys
from pathlib import Path
from vla_tune.config import load_config
from vla_tune.engine import checkpoint
from vla_tune.stages import train

original = checkpoint.sync_tree

def killed(folder):
    if folder.name == "4.new":
        os.kill(os.getpid(), signal.SIGKILL)
    original(folder)

checkpoint.sync_tree = killed
train.run(load_config("demo", json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_run_that_is_killed_while_a_checkpoint_is_written_goes_on_to_the_bit(overrides, small_config, tmp_path):
    more = ["train.steps=5", "data.heldout=0.34", "train.eval_every=2"]
    command = [sys.executable, "-c", KILLED, json.dumps([*overrides, *more]), str(tmp_path / "parts")]
    with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        train.run(small_config(*more), tmp_path / "whole")
        _, told = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, told
    partial = tmp_path / "parts" / "train.partial"
    assert checkpoint.finished(partial) == [2]
    assert (partial / "checkpoints" / "4.new").is_dir()
    train.run(small_config(*more), tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "train" for name in ("whole", "parts"))
    for file in ("policy/model.safetensors", "checkpoints/5/training_state/optimizer_state.safetensors"):
        expected, found = load_file(whole / file), load_file(parts / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    timed = ("step_s", "data_s")
    rows = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (whole, parts)]
    expected, found = ([{key: value for key, value in row.items() if key not in timed} for row in one] for one in rows)
    assert expected == found
    assert [row["step"] for row in found if "heldout_loss" in row] == [2, 4]
    assert sorted(entry.name for entry in (parts / "checkpoints").iterdir()) == ["4", "5"]
