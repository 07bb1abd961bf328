"""What a stream leaves after each of its tasks, for the evaluations and for further tasks: `after/<task>.safetensors` and `.json`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import sync_folder, sync_tree
from vla_tune.engine.state import read_state, state_of, write_state

if TYPE_CHECKING:
    from vla_tune.methods.base import Method

FOLDER = "after"
AGAIN = "give --overwrite to train again"


def leave(run: Path, task: int, method: Method, record: dict[str, Any]) -> None:
    """Write what there is after a task, and what there is to tell of it."""
    folder, fresh = run / FOLDER, run / f"{FOLDER}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    write_state(fresh, str(task), state_of(method, {"record": record}))
    sync_tree(fresh)
    folder.mkdir(exist_ok=True)
    for part in sorted(fresh.iterdir(), reverse=True):  # the tensors first: where the JSON is, all is
        part.rename(folder / part.name)
    fresh.rmdir()
    sync_folder(folder)


def done(run: Path) -> int:
    """How many tasks are finished there."""
    return len(list((run / FOLDER).glob("*.json")))


def restore(run: Path, task: int, method: Method) -> dict[str, Any]:
    """Bring a method and its model to what there was after a task; returns the JSON."""
    return read_state(run / FOLDER, str(task), method, AGAIN)
