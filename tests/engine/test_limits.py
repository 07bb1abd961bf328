"""Disk and memory: a run that cannot fit is told before it starts, one that ran out is told what helps."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from vla_tune.artifacts.folder import files_table
from vla_tune.engine.disk import disk_bytes
from vla_tune.errors import RunError, UserError, out_of_memory_told
from vla_tune.learners.demonstrations import Demonstrations
from vla_tune.stages import train
from vla_tune.stages.opening import open_method


def of_size(free):
    return lambda _: SimpleNamespace(free=free)


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_run_that_cannot_fit_is_told_before_anything_is_made(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", of_size(10**6))
    with pytest.raises(UserError, match=r"--out: .* has 0\.0 GB free, and the run writes up to .* lower train\.keep_checkpoints=2"):
        train.run(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plan_is_what_a_run_writes(small_config, tmp_path):
    config = small_config("train.checkpoint_every=1", "train.keep_checkpoints=3")
    planned = disk_bytes(config, open_method(config))
    artifact = train.run(config, tmp_path)
    checkpoints = artifact.path / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 3
    assert size_of(checkpoints) / 3 * 4 == pytest.approx(planned["checkpoints"], rel=0.01)  # a fourth while it is written
    written = files_table(artifact.path)
    assert written["policy/model.safetensors"]["bytes"] == pytest.approx(planned["model"], rel=0.01)
    assert written["vlm/model.safetensors"]["bytes"] == pytest.approx(planned["VLM"], rel=0.01)


def test_layers_that_the_policy_has_cut_count(small_config):
    whole, cut = (open_method(small_config(*more)) for more in ([], ["policy.settings.num_vlm_layers=2"]))
    config = small_config()
    assert disk_bytes(config, cut)["model"] < disk_bytes(config, whole)["model"]
    assert disk_bytes(config, cut)["VLM"] == disk_bytes(config, whole)["VLM"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes."),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_is_one_message(error):
    with (
        pytest.raises(RunError, match=r"^out of memory on cuda:0: try train\.accumulate$"),
        out_of_memory_told("cuda:0", "train.accumulate"),
    ):
        raise error


def test_the_allocator_says_it_as_we_read_it():
    with pytest.raises(RunError, match="out of memory"), out_of_memory_told("cpu", "less"):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="a shape") as raised, out_of_memory_told("cpu", "less"):
        raise RuntimeError("a shape")
    assert not isinstance(raised.value, RunError)


def test_a_training_out_of_memory_names_the_keys_that_help(small_config, tmp_path, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Demonstrations, "loss", full)
    with pytest.raises(RunError) as raised:
        train.run(small_config(), tmp_path)
    for key in ("train.accumulate", "train.activation_checkpointing=true", "train.precision=bfloat16", "train.batch_size"):
        assert key in str(raised.value)
