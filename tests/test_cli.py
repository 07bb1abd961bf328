"""The command line: what it offers, what it imports, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from vla_tune.cli import app
from vla_tune.errors import RunError, UserError

STAGES = {"anchor": "anchor", "train": "train", "eval-vqa": "eval_vqa", "eval-rollout": "eval_rollout", "eval": "evaluate"}
COMMON = {"pipeline", "overrides", "--out", "--overwrite", "--json"}


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def raising(monkeypatch, stage, error):
    """Replace a stage's `run` by one that ends with `error`."""

    def run(*_arguments, **_options):
        raise error

    monkeypatch.setitem(sys.modules, f"vla_tune.stages.{stage}", type("Stage", (), {"run": staticmethod(run)}))


def test_the_commands_and_options_do_not_grow_unnoticed():
    commands = get_command(app).commands
    offered = {}
    for name, command in commands.items():
        options = {p.opts[0] if p.opts[0].startswith("--") else p.name for p in command.params}
        offered[name] = options - {"--help"}
    assert offered == {
        "anchor": COMMON,
        "train": COMMON | {"--resume", "--plan"},
        "eval-vqa": COMMON,
        "eval-rollout": COMMON,
        "eval": COMMON,
        "check": {"pipeline", "overrides"},
        "report": {"runs", "--out", "--overwrite", "--json"},
    }


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([name, "--help"] for name in (*STAGES, "check", "report"))])
def test_asking_for_help_imports_neither_torch_nor_lerobot(arguments):
    code = (
        "import sys\nfrom vla_tune.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'lerobot', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "dmo"], "there is no shipped pipeline 'dmo'; did you mean 'demo'?"),
        (["train", "demo", "train.stesp=3"], "unknown key 'train.stesp'; did you mean 'train.steps'?"),
        (["train", "demo", "train.steps=-4"], "train.steps=-4: must be at least 1"),
        (["train", "demo", "train.steps=many"], "command line: train.steps=many: must be a whole number"),
        (["train", "demo", "method.name=aegi"], "unknown method; did you mean 'aegis'?"),
        (["train", "demo", "steps"], "an override is written KEY=VALUE"),
        (["train", "./nowhere.yaml"], "there is no file"),
        (["train", "demo", "--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_bad_input_ends_with_one_message_and_code_2(arguments, message):
    ended = call(*arguments)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert ended.stderr.startswith("vla-tune: ")
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("command", [*STAGES, "check"])
def test_every_stage_tells_errors_by_their_exit_codes(monkeypatch, command):
    for error, code in ((UserError("wrong"), 2), (RunError("broke"), 1), (KeyboardInterrupt(), 130)):
        raising(monkeypatch, STAGES.get(command, command), error)
        ended = call(command, "demo")
        assert ended.exit_code == code
        assert "Traceback" not in ended.output


def test_a_full_disk_says_how_to_go_on(monkeypatch):
    raising(monkeypatch, "train", OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    ended = call("train", "demo", "seed=3", "--out", "runs/x")
    assert ended.exit_code == 1
    assert "the disk is full (runs/x)" in ended.stderr
    assert "vla-tune train demo seed=3 --out runs/x --resume" in ended.stderr


def test_a_disk_that_safetensors_finds_full(monkeypatch):
    from safetensors import SafetensorError

    raising(monkeypatch, "train", SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    ended = call("train", "demo", "rollout.tasks=[reach-v3, door-open-v3]")
    assert ended.exit_code == 1
    assert "the disk is full" in ended.stderr
    assert "vla-tune train demo 'rollout.tasks=[reach-v3, door-open-v3]' --resume" in ended.stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_named(monkeypatch, number):
    raising(monkeypatch, "train", OSError(number, os.strerror(number), "runs/x/train.partial.new"))
    ended = call("train", "demo", "--resume")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("vla-tune: runs/x/train.partial.new: ")
    assert "another --out" in ended.stderr


@pytest.mark.parametrize("number", [2, 15])
def test_a_stopped_run_prints_the_command_that_resumes_it(monkeypatch, number):
    from vla_tune.engine.signals import Interrupted

    raising(monkeypatch, "train", Interrupted(number))
    ended = call("train", "demo", "--out", "runs/x")
    assert ended.exit_code == 128 + number
    assert "go on with: vla-tune train demo --out runs/x --resume" in ended.stderr


def test_a_bug_keeps_its_traceback(monkeypatch):
    raising(monkeypatch, "train", ZeroDivisionError("ours"))
    assert isinstance(call("train", "demo").exception, ZeroDivisionError)


def test_json_is_the_last_line(monkeypatch, tmp_path):
    from vla_tune.artifacts.folder import Artifact

    made = Artifact(tmp_path / "anchor", {"metrics": {"samples": 3}})
    monkeypatch.setitem(sys.modules, "vla_tune.stages.anchor", type("Stage", (), {"run": staticmethod(lambda *_a, **_k: made)}))
    ended = call("anchor", "demo", "--json")
    assert ended.exit_code == 0
    assert json.loads(ended.stdout.splitlines()[-1]) == {"samples": 3}
