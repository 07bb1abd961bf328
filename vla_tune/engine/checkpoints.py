"""Checkpoints of a run in progress, written whole or not at all, and going back to the newest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import sync_folder, sync_tree
from vla_tune.errors import UserError

if TYPE_CHECKING:
    import torch

    from vla_tune.methods.base import Method

KEPT = 2
"""How many checkpoints stay: the newest, and the one before it."""


def save_checkpoint(
    run: Path, step: int, method: Method, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> None:
    """Write `run/checkpoints/<step>` under a temporary name, sync it, rename it, then drop the oldest."""
    from lerobot.common.train_utils import save_training_state
    from safetensors.torch import save_file, save_model

    folder = run / "checkpoints"
    fresh, final = folder / f"{step}.new", folder / str(step)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        save_model(method.policy, str(fresh / "model.safetensors"))
        save_file({name: tensor.contiguous() for name, tensor in method.state_dict().items()}, fresh / "method.safetensors")
        save_training_state(fresh, step, optimizer, scheduler)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_tree(fresh)
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
    sync_folder(folder)
    for old in finished(run)[:-KEPT]:
        shutil.rmtree(folder / str(old))


def finished(run: Path) -> list[int]:
    """The steps of the complete checkpoints, oldest first."""
    return sorted(int(entry.name) for entry in (run / "checkpoints").glob("*") if entry.name.isdigit())


def load_checkpoint(
    run: Path, step: int, method: Method, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> None:
    """Put weights, method, optimizer, schedule and random generators back to what they were after `step`."""
    from lerobot.common.train_utils import load_training_state
    from safetensors.torch import load_file, load_model

    folder = run / "checkpoints" / str(step)
    with loaded(f"checkpoint {folder}", "remove it to resume from an older one"):
        load_model(method.policy, folder / "model.safetensors", strict=True)
        method.load_state_dict(load_file(folder / "method.safetensors"))
        method.steps = step
        load_training_state(folder, optimizer, scheduler)


@contextmanager
def loaded(state: str, remedy: str) -> Iterator[None]:
    """Turn whatever a damaged state raises in here into a UserError that names it and says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{state} cannot be loaded ({' '.join(str(error).split())[:200]}); {remedy}") from None


def begun_with(partial: Path) -> dict[str, Any]:
    """The configuration that an unfinished run began with, as the working folder has it."""
    try:
        config: dict[str, Any] = json.loads((partial / "run.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"--resume: {partial / 'run.json'} is missing or damaged; give --overwrite to train again") from None
    return config


def reopen(target: Path, partial: Path, states: str) -> None:
    """Copy a finished run's states (a folder of it) and rows into the working folder, to extend it."""
    shutil.rmtree(partial, ignore_errors=True)
    fresh = partial.with_name(f"{partial.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    shutil.copytree(target / states, fresh / states)
    for name in ("metrics.jsonl", "run.json"):
        shutil.copy2(target / name, fresh / name)
    fresh.rename(partial)


def cut_metrics(file: Path, step: int) -> None:
    """Drop the rows of steps after `step`, which a resumed run will write again."""
    if not file.exists():
        return
    rows = [line for line in file.read_text().splitlines() if _step_of(line) is not None]
    kept = [line for line in rows if (_step_of(line) or 0) <= step]
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text("".join(f"{line}\n" for line in kept))
    fresh.replace(file)


def _step_of(line: str) -> int | None:
    try:
        row: dict[str, Any] = json.loads(line)
        return int(row["step"])
    except (ValueError, KeyError):  # a row cut short by a crash
        return None
