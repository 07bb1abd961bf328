"""Checkpoints of a run in progress, written whole or not at all: what trains, optimizer, schedule, generators, place.

    checkpoints/<step>/checkpoint.json         schema, place, digests of the other files
                       state.safetensors       what training has changed or added (`Method.state_dict`)
                       state.json              what of it is no tensor
                       training_state/         optimizer, schedule and random generators, as lerobot writes them

Safetensors and JSON: nothing in it can run when it is read.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import files_table, sync_folder, sync_tree
from vla_tune.engine.state import read_state, readable, write_state
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.engine.step import Step
    from vla_tune.methods.base import Method

SCHEMA = "vla-tune/checkpoint/1"
FOLDER = "checkpoints"
HEAD = "checkpoint.json"
OLDER = "remove it to resume from an older one"


@dataclass(frozen=True, order=True)
class Place:
    """How far a run is: the task that is learnt, and the steps taken in it."""

    task: int = 0
    step: int = 0


def save(run: Path, step: int, place: Place, trainer: Step, more: dict[str, Any], keep: int) -> None:
    """Write `run/checkpoints/<step>` under a temporary name, sync it, rename it, then drop all but the newest `keep`.

    Args:
        step: counted over all tasks.
        more: what else a resumed run needs to know.

    """
    from lerobot.common.train_utils import save_training_state

    folder = run / FOLDER
    fresh, final = folder / f"{step}.new", folder / str(step)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write_state(fresh, "state", trainer.method, more)
        save_training_state(fresh, step, trainer.optimizer, trainer.scheduler)
        head = {"schema": SCHEMA, "place": asdict(place), "files": files_table(fresh)}
        (fresh / HEAD).write_text(json.dumps(head, indent=1))
        sync_tree(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
    sync_folder(folder)
    for old in finished(run)[:-keep]:
        shutil.rmtree(folder / str(old))


def finished(run: Path) -> list[int]:
    """The steps, over all tasks, of the complete checkpoints, oldest first."""
    return sorted(int(entry.name) for entry in (run / FOLDER).glob("*") if entry.name.isdigit())


def newest(run: Path) -> tuple[Path, Place] | None:
    """The newest checkpoint and how far it is, with every file as it was written; None where there is none.

    Raises:
        UserError: it is damaged, or an earlier version's.

    """
    steps = finished(run)
    if not steps:
        return None
    folder = run / FOLDER / str(steps[-1])
    with readable(f"checkpoint {folder}", OLDER):
        if not (folder / HEAD).is_file():
            raise UserError(f"checkpoint {folder} is of an earlier version of vla-tune, or damaged; give --overwrite to train again")
        head = json.loads((folder / HEAD).read_text())
        found = files_table(folder)
        for name, entry in head["files"].items():
            if found.get(name) != entry:
                raise UserError(f"checkpoint {folder}: {name} is missing or was changed after it was written; {OLDER}")
        return folder, Place(**head["place"])


def load_model(folder: Path, method: Method, place: Place) -> dict[str, Any]:
    """Put a method and its model back to those of the checkpoint; returns what was saved beside them (`more`)."""
    note = read_state(folder, "state", method, OLDER)
    method.resume(place.task)
    return note


def load_training(folder: Path, trainer: Step, place: Place) -> None:
    """Put optimizer, schedule and random generators back to those of the checkpoint."""
    from lerobot.common.train_utils import load_training_state

    with readable(f"checkpoint {folder}", OLDER):
        load_training_state(folder, trainer.optimizer, trainer.scheduler)
    trainer.method.task, trainer.method.steps = place.task, place.step
