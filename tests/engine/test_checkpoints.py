"""Checkpoints: what is copied, what stays on the disk, and that they are written while training goes on."""

from __future__ import annotations

import errno
import math
import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_tune.engine import checkpoint
from vla_tune.engine.checkpoint import Place
from vla_tune.engine.writer import Writer


def trainer():
    """Everything of a training that a checkpoint holds, around one linear layer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    state = SimpleNamespace(bias="{}")
    method = SimpleNamespace(
        model=model,
        task=0,
        steps=0,
        state_dict=lambda: {"weight": model.weight.detach().T, "bias": model.bias.detach()},  # one of them not contiguous
        note=lambda: state.bias,
        learner=SimpleNamespace(scales=lambda: None),
    )
    return SimpleNamespace(method=method, optimizer=optimizer, scheduler=scheduler)


def step(one):
    loss = one.method.model(torch.randn(4, 3)).square().sum()
    for p, gradient in zip(one.method.model.parameters(), torch.autograd.grad(loss, list(one.method.model.parameters())), strict=True):
        p.grad = gradient
    one.optimizer.step()
    one.scheduler.step()


def snapshot(number, heldout_loss=None, one=None):
    return checkpoint.take(number, Place(0, number), one or trainer(), {"sizes": []}, heldout_loss)


def files(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_snapshot_is_of_its_moment_whatever_training_does_afterwards(tmp_path):
    one = trainer()
    step(one)
    kept = snapshot(1, one=one)
    checkpoint.write(tmp_path / "at once", kept, 2)
    step(one)
    checkpoint.write(tmp_path / "later", kept, 2)
    at_once, later = (files(tmp_path / name / "checkpoints" / "1") for name in ("at once", "later"))
    assert at_once == later
    assert set(at_once) == {
        "checkpoint.json",
        "state.json",
        "state.safetensors",
        *(f"training_state/{name}.json" for name in ("optimizer_param_groups", "scheduler_state", "training_step")),
        *(f"training_state/{name}.safetensors" for name in ("optimizer_state", "rng_state")),
    }


def test_optimizer_schedule_and_generators_come_back_to_the_bit(tmp_path):
    one = trainer()
    step(one)
    checkpoint.write(tmp_path, snapshot(1, one=one), 2)
    before = {name: tensor.clone() for name, tensor in one.method.model.state_dict().items()}
    step(one)
    other = trainer()
    other.method.model.load_state_dict(before)
    folder, place = checkpoint.newest(tmp_path)
    checkpoint.load_training(folder, other, place)
    step(other)  # draws what the first one drew
    for mine, its in zip(one.method.model.parameters(), other.method.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert one.scheduler.get_last_lr() == other.scheduler.get_last_lr()


LOSSES = st.lists(st.one_of(st.none(), st.sampled_from([0.5, 1.0, 2.0, math.nan])), min_size=1, max_size=6)


@settings(max_examples=40)
@given(LOSSES, st.integers(1, 3), st.booleans())
def test_the_newest_and_the_best_stay(losses, keep, keep_best):
    run = Path(tempfile.mkdtemp())
    state, steps = snapshot(0).state, range(1, len(losses) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "sync_tree", lambda folder: None)
        patch.setattr(checkpoint, "sync_folder", lambda folder: None)
        for number, loss in zip(steps, losses, strict=True):
            one = checkpoint.Snapshot(number, Place(0, number), state, {"param_groups": []}, {}, {}, loss)
            checkpoint.write(run, one, keep, keep_best=keep_best)
    known = [(loss, number) for number, loss in zip(steps, losses, strict=True) if loss is not None and not math.isnan(loss)]
    expected = set(steps[-keep:])
    if keep_best and known:
        expected.add(min(known)[1])
        assert checkpoint.best(run) == min(known)[::-1]
    assert set(checkpoint.finished(run)) == expected
    assert {entry.name for entry in (run / "checkpoints").iterdir()} == {str(number) for number in expected}
    shutil.rmtree(run)


def test_training_goes_on_while_one_checkpoint_is_written(tmp_path, monkeypatch):
    told, go, write = [], threading.Event(), checkpoint.write

    def slow(run, what, keep, **more):
        assert go.wait(60)
        write(run, what, keep, **more)
        told.append(f"written {what.step}")

    def take(number):
        told.append(f"taken {number}")
        return snapshot(number)

    monkeypatch.setattr(checkpoint, "write", slow)
    with Writer(tmp_path, 2, keep_best=False) as writer:
        writer.save(lambda: take(1))
        told.append("training")
        go.set()
        writer.save(lambda: take(2))
    assert told == ["taken 1", "training", "written 1", "taken 2", "written 2"]
    assert checkpoint.finished(tmp_path) == [1, 2]


@pytest.fixture
def full_disk(monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoint, "sync_tree", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_ends_the_run_and_leaves_nothing(tmp_path, capsys):
    with pytest.raises(OSError, match="No space left"), Writer(tmp_path, 2, keep_best=False) as writer:
        writer.save(lambda: snapshot(1))
    with Writer(tmp_path, 2, keep_best=False) as writer:
        writer.save(lambda: snapshot(1))
        with pytest.raises(OSError, match="No space left"):
            writer.save(lambda: pytest.fail("the first one has failed"))

    def broken():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), Writer(tmp_path, 2, keep_best=False) as writer:
        writer.save(lambda: snapshot(1)) or broken()
    assert "the last checkpoint could not be written" in capsys.readouterr().err
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_a_killed_run_half_wrote_goes(tmp_path):
    checkpoint.write(tmp_path, snapshot(1), 2)
    for name in ("2.new", "0.old"):
        (tmp_path / "checkpoints" / name).mkdir()
    with Writer(tmp_path, 2, keep_best=False):
        assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["1"]
