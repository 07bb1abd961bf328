"""Ctrl-C and SIGTERM while the program still imports: exit code 130 or 143 and one line, at whatever moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib

import pytest
from imports import ROOT

STOPPED = """
import os, sys
module, number = sys.argv.pop(1), int(sys.argv.pop(1))

def hook(event, given):
    if event == "import" and given[0] == module:
        os.kill(os.getpid(), number)

sys.addaudithook(hook)
from vla_tune.__main__ import main
sys.exit(main())
"""
"""The console script, with a signal right before a module is imported."""


def stopped(module, number, *arguments):
    command = [sys.executable, "-c", STOPPED, module, str(int(number)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["vla_tune.cli", "contextlib", "typer", "vla_tune.config", "omegaconf", "torch", "torch._C"])
def test_a_signal_during_imports_ends_with_one_line(module, number, tmp_path):
    ended = stopped(module, number, "train", "demo", "--out", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (128 + number, "")
    assert ended.stderr.startswith("vla-tune: interrupted")
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_console_script_sees_to_signals_before_it_imports_anything():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vla-tune": "vla_tune.__main__:main"}
    code = "import sys; before = set(sys.modules); import vla_tune.__main__; print(*sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()) <= {"__future__", "atexit", "vla_tune", "vla_tune.__main__", "vla_tune.interrupts"}
