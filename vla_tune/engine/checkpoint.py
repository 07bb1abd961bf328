"""Checkpoints of a run in progress, written whole or not at all: what trains, optimizer, schedule, generators, place.

    checkpoints/<step>/checkpoint.json         schema, place, held-out loss, digests of the other files
                       state.safetensors       what training has changed or added (`Method.state_dict`)
                       state.json              what of it is no tensor
                       training_state/         optimizer, schedule and random generators, as lerobot writes them

Safetensors and JSON: nothing in it can run when it is read.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import files_table, sync_folder, sync_tree
from vla_tune.artifacts.typed import readable
from vla_tune.engine.state import State, copied, read_state, state_of, write_state
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

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


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, copied to the host: training may go on while it is written.

    step: counted over all tasks.
    heldout_loss: where it was measured at this step.
    """

    step: int
    place: Place
    state: State
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    generators: dict[str, Tensor]
    heldout_loss: float | None = None


def take(step: int, place: Place, trainer: Step, more: dict[str, Any], heldout_loss: float | None = None) -> Snapshot:
    """Copy a run as it is now.

    Args:
        more: what else a resumed run needs to know.

    """
    from lerobot.utils.random_utils import serialize_rng_state

    optimizer, scheduler = copied(trainer.optimizer.state_dict()), copied(trainer.scheduler.state_dict())
    return Snapshot(step, place, state_of(trainer.method, more), optimizer, scheduler, copied(serialize_rng_state()), heldout_loss)


def write(run: Path, snapshot: Snapshot, keep: int, *, keep_best: bool = False) -> None:
    """Write `run/checkpoints/<step>` under a temporary name, sync it, rename it, then drop all but the newest `keep`.

    Args:
        keep_best: whether the one with the lowest held-out loss stays too.

    """
    folder = run / FOLDER
    fresh, final = folder / f"{snapshot.step}.new", folder / str(snapshot.step)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write_state(fresh, "state", snapshot.state)
        _write_training(fresh / "training_state", snapshot)
        head = {
            "schema": SCHEMA,
            "place": asdict(snapshot.place),
            "heldout_loss": snapshot.heldout_loss,
            "files": files_table(fresh),
        }
        (fresh / HEAD).write_text(json.dumps(head, indent=1))
        sync_tree(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
    sync_folder(folder)
    lowest = best(run) if keep_best else None
    for old in finished(run)[:-keep]:
        if lowest is None or old != lowest[0]:
            gone = (folder / str(old)).rename(folder / f"{old}.old")  # whole or gone, also where the run dies in here
            shutil.rmtree(gone)


def _write_training(folder: Path, snapshot: Snapshot) -> None:
    """The folder that lerobot's `save_training_state` writes, from copies."""
    from lerobot.utils.constants import OPTIMIZER_PARAM_GROUPS, OPTIMIZER_STATE, RNG_STATE, SCHEDULER_STATE, TRAINING_STEP
    from lerobot.utils.io_utils import write_json
    from lerobot.utils.utils import flatten_dict
    from safetensors.torch import save_file

    folder.mkdir()
    moments = {key: value for key, value in snapshot.optimizer.items() if key != "param_groups"}
    save_file(flatten_dict(moments), folder / OPTIMIZER_STATE)
    save_file(flatten_dict(snapshot.generators), folder / RNG_STATE)
    write_json(snapshot.optimizer["param_groups"], folder / OPTIMIZER_PARAM_GROUPS)
    write_json(snapshot.scheduler, folder / SCHEDULER_STATE)
    write_json({"step": snapshot.step}, folder / TRAINING_STEP)


def clear(run: Path) -> None:
    """Remove what a run that was killed had half written or half removed."""
    for left in (run / FOLDER).glob("*.*"):
        shutil.rmtree(left)


def drop(run: Path) -> None:
    """Remove all checkpoints: there are all or none, also where the run dies in here."""
    folder, gone = run / FOLDER, run / f"{FOLDER}.old"
    if folder.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def finished(run: Path) -> list[int]:
    """The steps, over all tasks, of the complete checkpoints, oldest first."""
    return sorted(int(entry.name) for entry in (run / FOLDER).glob("*") if entry.name.isdigit())


def best(run: Path) -> tuple[int, float] | None:
    """The step of the checkpoint with the lowest held-out loss, and that loss; None where it was measured at none."""
    losses = {step: _heldout_loss(run / FOLDER / str(step)) for step in finished(run)}
    return min(((step, loss) for step, loss in losses.items() if math.isfinite(loss)), key=lambda one: one[1], default=None)


def _heldout_loss(folder: Path) -> float:
    """Not a number where none was measured."""
    try:
        loss: float | None = json.loads((folder / HEAD).read_text()).get("heldout_loss")
    except (OSError, ValueError):  # damaged: told where it is read to go on from
        return math.nan
    return math.nan if loss is None else loss


def newest(run: Path) -> tuple[Path, Place] | None:
    """The newest checkpoint and how far it is, with every file as it was written; None where there is none.

    Raises:
        UserError: it is damaged, or an earlier version's.

    """
    steps = finished(run)
    if not steps:
        return None
    folder = run / FOLDER / str(steps[-1])
    with readable(f"checkpoint {folder}", OLDER, "loaded"):
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

    with readable(f"checkpoint {folder}", OLDER, "loaded"):
        load_training_state(folder, trainer.optimizer, trainer.scheduler)
    trainer.method.task, trainer.method.steps = place.task, place.step
