"""Start-up: what training imports, beside lerobot's policy alone, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.rounds import Rounds, alternate

OURS = """
from vla_tune.config import load_config
from vla_tune.policies import adapter_class
from vla_tune.stages import train

adapter_class(load_config("demo", []).policy.type).policy_class()
"""
LEROBOT = "import lerobot.policies.smolvla.modeling_smolvla"


def measure(rounds: int) -> Rounds:
    """Both in turns; the first of each, which fills the caches, does not count."""
    return alternate("start-up: training against lerobot's SmolVLA alone", lambda: _python(OURS), lambda: _python(LEROBOT), rounds)


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
