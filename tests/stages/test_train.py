"""The train stage for real: resuming, exporting, and every way in which it can end."""

from __future__ import annotations

import errno
import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from vla_tune.artifacts.folder import files_table, read_artifact
from vla_tune.engine import checkpoint
from vla_tune.engine.signals import Interrupted
from vla_tune.engine.step import Step
from vla_tune.errors import RunError, UserError
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.stages import train


def weights(run):
    return load_file(run / "train" / "policy" / "model.safetensors")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(folder):
    """What must repeat: everything but the timings."""
    return [{key: value for key, value in row.items() if key not in ("step_s", "data_s")} for row in rows(folder)]


def stop_at(monkeypatch, step, number=signal.SIGINT):
    """Send ourselves a signal while this step is being taken."""
    original, taken = Step.__call__, []

    def step_then_signal(self, batch):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        return original(self, batch)

    monkeypatch.setattr(Step, "__call__", step_then_signal)


@pytest.fixture(scope="module")
def anchored(tmp_path_factory):
    """An anchor that the runs of this module share."""
    from vla_tune.config import load_config
    from vla_tune.stages import anchor

    run = tmp_path_factory.mktemp("anchored")
    anchor.run(load_config("demo", ["anchor.samples=8", "anchor.batch_size=4", "anchor.frames=0"]), run)
    return run / "anchor"


@pytest.mark.parametrize("method", ["aegis", "lora", "subspace"])
def test_train_equals_train_and_resume(small_config, anchored, tmp_path, monkeypatch, method):
    config = small_config(f"method.name={method}", f"anchor.path={anchored}")
    train.run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step=3)
        with pytest.raises(Interrupted) as stopped:
            train.run(config, tmp_path / "parts")
    assert stopped.value.code == 130
    partial = tmp_path / "parts" / "train.partial"
    assert checkpoint.finished(partial) == [2, 3]
    with (partial / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 0}\n{"step": 5, "lo')  # written by a run that died after its last checkpoint
    torch.manual_seed(99)
    train.run(config, tmp_path / "parts", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert figures(tmp_path / "whole" / "train") == figures(tmp_path / "parts" / "train")
    assert not partial.exists()


def test_a_finished_run_is_extended(small_config, tmp_path):
    longer, shorter = small_config("train.steps=4"), small_config("train.steps=3")
    train.run(shorter, tmp_path)
    with pytest.raises(UserError, match="exists already"):
        train.run(longer, tmp_path)
    with pytest.raises(UserError, match=r"finished at step 3; raise train\.steps"):
        train.run(shorter, tmp_path, resume=True)
    artifact = train.run(longer, tmp_path, resume=True)
    assert artifact.metrics["steps"] == 4
    assert artifact.metrics["seconds"] > 3 * artifact.metrics["step_s"]  # the first part counts as well
    assert [row["step"] for row in rows(tmp_path / "train")] == [1, 2, 3, 4]
    read_artifact(tmp_path / "train", "train", "vla-tune train")


def test_the_exported_policy_is_a_stock_one_bit_for_bit(small_config, tmp_path):
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trained = {}
    config = small_config("train.steps=2")
    original = Demonstrations.save

    def keep(self, folder, final):
        original(self, folder, final)
        trained.update({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Demonstrations, "save", keep)
        artifact = train.run(config, tmp_path)
    folder = artifact.path / "policy"
    loaded = SmolVLAPolicy.from_pretrained(folder, strict=True)
    assert loaded.config.load_vlm_weights is False
    assert loaded.config.vlm_model_name == str(tmp_path / "train" / "vlm")
    state = loaded.state_dict()
    assert state.keys() == trained.keys()
    for name, tensor in trained.items():
        assert state[name].dtype == tensor.dtype == torch.float32
        assert torch.equal(state[name], tensor), name
    preprocess, _ = make_pre_post_processors(loaded.config, pretrained_path=str(folder))
    batch = preprocess({"observation.image": torch.rand(1, 3, 64, 64), "observation.state": torch.zeros(1, 4), "task": ["Open a drawer"]})
    assert loaded.select_action(batch).shape == (1, 4)

    vlm = AutoModelForImageTextToText.from_pretrained(artifact.path / "vlm").state_dict()
    AutoProcessor.from_pretrained(artifact.path / "vlm")
    inner = {name.partition(".vlm.")[2]: tensor for name, tensor in state.items() if ".vlm." in name}
    assert vlm.keys() == inner.keys()
    assert all(torch.equal(tensor, inner[name]) for name, tensor in vlm.items())
    assert artifact.manifest["files"] == files_table(artifact.path)
    assert not any(name.startswith("checkpoints") for name in artifact.manifest["files"])


def test_a_run_starts_from_a_trained_policy_wherever_it_was_moved(small_config, tmp_path):
    train.run(small_config("train.steps=1"), tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    before = weights(tmp_path / "moved")
    start = f"policy.path={tmp_path / 'moved' / 'train' / 'policy'}"
    config = small_config("train.steps=1", "method.name=frozen", start)
    train.run(config, tmp_path / "second")
    after = weights(tmp_path / "second")
    assert all(torch.equal(before[name], after[name]) for name in before if ".vlm." in name)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match=r"policy\.settings\.chunk_size=8: the policy at policy\.path was made with 4"):
        train.run(small_config(start, "policy.settings.chunk_size=8"), tmp_path / "third")


def test_not_a_number_keeps_the_last_checkpoint(small_config, tmp_path, monkeypatch):
    original, calls = Demonstrations.loss, []

    def broken(self, batch):
        calls.append(1)
        return original(self, batch) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(Demonstrations, "loss", broken)
    with pytest.raises(RunError, match=r"step 3: loss nan.*the checkpoint of step 2 is safe"):
        train.run(small_config(), tmp_path)
    assert checkpoint.finished(tmp_path / "train.partial") == [2]
    assert not (tmp_path / "train").exists()
    monkeypatch.setattr(Demonstrations, "loss", original)
    assert train.run(small_config(), tmp_path, resume=True).metrics["steps"] == 4


def test_a_full_disk_keeps_the_last_checkpoint(small_config, tmp_path, monkeypatch):
    original = checkpoint.sync_tree

    def full(folder):
        if folder.name == "4.new":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return original(folder)

    monkeypatch.setattr(checkpoint, "sync_tree", full)
    with pytest.raises(OSError, match="No space left"):
        train.run(small_config(), tmp_path)
    folder = tmp_path / "train.partial" / "checkpoints"
    assert [entry.name for entry in folder.iterdir()] == ["2"]


def test_what_is_there_is_not_overwritten(small_config, tmp_path, monkeypatch):
    stop_at(monkeypatch, step=1, number=signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        train.run(small_config(), tmp_path)
    assert stopped.value.code == 143
    with pytest.raises(UserError, match="holds an unfinished run; give --resume to go on from step 1"):
        train.run(small_config(), tmp_path)
    with pytest.raises(UserError, match=r"--resume: train\.lr was 0\.001, is 0\.01"):
        train.run(small_config("train.lr=0.01"), tmp_path, resume=True)
    with pytest.raises(UserError, match="there is no checkpoint"):
        train.run(small_config(), tmp_path / "nothing", resume=True)


def test_the_plan_trains_nothing(small_config, tmp_path, anchored, capsys):
    assert train.run(small_config("method.name=aegis", f"anchor.path={anchored}"), tmp_path, plan=True) is None
    shown = capsys.readouterr().out
    for word in ("vlm.layers.0", "parameters", "optimizer state", "gradients", "activations, 4 samples at once"):
        assert word in shown
    assert list(tmp_path.iterdir()) == []


def test_a_resumption_never_replaces_a_finished_run(small_config, copied, tmp_path):
    copied(small_config("train.steps=2"))
    before = files_table(tmp_path / "train")
    with pytest.raises(UserError, match=r"--resume: seed was 0, is 1"):
        train.run(small_config("train.steps=4", "seed=1"), tmp_path, resume=True)
    assert not (tmp_path / "train.partial").exists()
    with pytest.raises(UserError, match="finished at step 2"):
        train.run(small_config("train.steps=2"), tmp_path, resume=True)
    assert files_table(tmp_path / "train") == before


def test_a_run_is_not_resumed_to_fewer_steps_and_a_broken_checkpoint_is_told(small_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, step=3)
        with pytest.raises(Interrupted):
            train.run(small_config("train.log_every=4"), tmp_path)
    with pytest.raises(UserError, match=r"is at step 3 already; give train\.steps=3 or more"):
        train.run(small_config("train.steps=2", "train.log_every=4"), tmp_path, resume=True)
    weights_file = tmp_path / "train.partial" / "checkpoints" / "3" / "state.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    with pytest.raises(UserError, match="remove it to resume from an older one"):
        train.run(small_config("train.log_every=4"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["device=cuda:7"], "device=cuda:7: torch cannot use it here"),
        (["policy.settings.num_vlm_layers=abc"], "lerobot cannot make this smolvla policy"),
        (["policy.settings.load_vlm_weights=true"], "follows from policy.base_vlm"),
        (["method.name=aegis"], r"anchor artifact .* is missing.*vla-tune anchor"),
        (["data.root=/nowhere"], "not a LeRobotDataset"),
        (["policy.settings.train_expert_only=true"], "train_expert_only"),
        (["policy.settings.chunksize=4"], "did you mean 'chunk_size'"),
        (["policy.base_vlm=/nowhere"], "cannot be opened"),
        (["policy.base_vlm=null"], r"policy\.path .* or policy\.base_vlm"),
        (["policy.settings.n_action_steps=9"], "chunk size is the upper bound"),
        (["policy.path=/nowhere/policy"], "cannot be opened"),
        (["data.manifest=metaworld-demo"], r"would be left out beside data\.manifest"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(small_config, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train.run(small_config(*more), tmp_path / "run")
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []
