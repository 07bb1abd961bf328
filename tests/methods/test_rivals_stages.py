"""The rivals in the train stage: resuming, a run mixed from two, the plan, and the log's summary."""

from __future__ import annotations

import copy
import json
import os
import signal

import pytest
import torch
from rivals import ASKING, make
from safetensors.torch import load_file

from vla_tune.config import WiSEFTConfig
from vla_tune.engine.signals import Interrupted
from vla_tune.engine.step import Step
from vla_tune.errors import UserError
from vla_tune.reports.runs import layer_series, mean_energy_shed, read_run
from vla_tune.stages import train


def test_one_number_a_step_is_a_diagnostic_too(tmp_path):
    rows = '{"step": 1, "loss": 2.0, "step_s": 1, "data_s": 0, "energy_shed": 0.25, "projected": 1, "task": 2.0}\n'
    rows += '{"step": 2, "loss": 1.0, "step_s": 3, "data_s": 0, "energy_shed": 0.0, "projected": 0, "task": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(rows)
    found = train.summary(tmp_path / "metrics.jsonl")
    assert found == {"steps": 2, "loss": 1.0, "step_s": 2.0, "data_s": 0.0, "energy_shed": 0.125, "projected": 0.5}
    metrics = [{"step": 1, "energy_shed": 0.25}]
    assert layer_series(metrics) is None
    assert mean_energy_shed(metrics) == 0.25
    (tmp_path / "metrics.jsonl").write_text("")
    assert train.summary(tmp_path / "metrics.jsonl")["steps"] == 0


def interrupted(patch, step):
    """Have the process send itself Ctrl-C while this step is taken."""
    original, taken = Step.__call__, []

    def step_then_signal(self, batch):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    patch.setattr(Step, "__call__", step_then_signal)


def weights(run):
    return load_file(run / "train" / "policy" / "model.safetensors")


def figures(run):
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("step_s", "data_s")} for row in rows]


@pytest.fixture
def few_questions(memory, monkeypatch):
    """The train stage reads the six questions of this module, not three thousand that it would have to draw first."""
    monkeypatch.setattr("vla_tune.stages.opening.vqa_questions", lambda manifest, split: memory.questions)


@pytest.mark.parametrize("name", ASKING)
def test_a_rival_resumes_bit_for_bit(small_config, few_questions, tmp_path, monkeypatch, name):
    fewer = ["train.steps=2", "train.batch_size=2", "method.ewc.samples=2", "method.agem.samples=4", "method.agem.batch_size=2"]
    config = small_config(f"method.name={name}", *fewer)
    train.run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, step=1)
        with pytest.raises(Interrupted):
            train.run(config, tmp_path / "parts")
    torch.manual_seed(99)
    train.run(config, tmp_path / "parts", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    assert [row["step"] for row in figures(tmp_path / "whole")] == [1, 2]
    kept = load_file(tmp_path / "parts" / "train" / "checkpoints" / "2" / "state.safetensors")
    beside = {key for key in kept if not key.startswith("model.")}
    assert beside == ({"extras:actions.weight", "extras:actions.bias"} if name == "insulated" else set())


def test_wise_ft_lies_between_the_base_and_a_finished_run(small_config, tmp_path, stock):
    tuned = train.run(small_config("train.steps=1", "train.batch_size=2"), tmp_path / "tuned")
    chosen = ["method.name=wise_ft", f"method.wise_ft.path={tuned.path}"]
    artifact = train.run(small_config(*chosen, "method.wise_ft.alpha=0.25"), tmp_path / "mixed")
    assert artifact.manifest["inputs"] == [tuned.as_input()]
    assert (artifact.metrics["steps"], artifact.metrics["loss"]) == (0, None)
    assert read_run(tmp_path / "mixed").metrics == []
    start, end, mixed = stock.state_dict(), weights(tmp_path / "tuned"), weights(tmp_path / "mixed")
    assert mixed.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in end if ".vlm." in name)
    ends = {}
    for alpha in (0.0, 1.0):
        ends[alpha] = copy.deepcopy(stock)
        make("wise_ft", ends[alpha], wise_ft=WiSEFTConfig(alpha=alpha, path=str(tuned.path)))
    for name, tensor in mixed.items():
        inside = ".vlm." in name
        wanted = start[name] + 0.25 * (end[name] - start[name]) if inside else end[name]
        torch.testing.assert_close(tensor, wanted, rtol=1e-5 * inside, atol=1e-7 * inside)
        assert torch.equal(ends[0.0].state_dict()[name], start[name] if inside else end[name])
        assert torch.equal(ends[1.0].state_dict()[name], end[name])

    with pytest.raises(UserError, match=r"another start: policy\.settings\.chunk_size was 4, is 2"):
        train.run(small_config(*chosen, "policy.settings.chunk_size=2"), tmp_path / "x")
    with pytest.raises(UserError, match="train artifact /nowhere is missing"):
        train.run(small_config("method.name=wise_ft", "method.wise_ft.path=/nowhere"), tmp_path / "x")
    (tuned.path / "policy" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="truncated"):
        train.run(small_config(*chosen), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_plan_of_a_rival(small_config, few_questions, tmp_path, capsys):
    assert train.run(small_config("method.name=insulated"), tmp_path, plan=True) is None
    shown = capsys.readouterr().out
    assert "actions (beside the policy)" in shown
    assert "activations, 4 samples at once" in shown
