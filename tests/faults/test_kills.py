"""Kills of every stage, a few of each target; `make faults` plays more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("targets", ["train=6 workers=4", "stream=6 scores=3", "anchor=3 vqa=4 rollout=5 report=2"])
def test_what_is_killed_goes_on_to_the_same_end(targets):
    """From a process that imports torch and lerobot once and has no threads, so that it can fork."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *targets.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
