"""What tells one state of a dataset from another, and is kept beside what was trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.artifacts.folder import table_digest, write_json
from vla_tune.data.instructions import instructions
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


FILE = "dataset.json"


def identity(meta: LeRobotDatasetMetadata) -> dict[str, Any]:
    """The digests of a dataset's features and instructions, of its episodes, and of its statistics; how many episodes there are."""
    lengths = [int(length) for length in meta.episodes["length"]]
    told = [list(map(str, tasks)) for tasks in meta.episodes["tasks"]] if "tasks" in meta.episodes.column_names else None
    return {
        "repo_id": meta.repo_id,
        "episodes": len(lengths),
        "metadata_digest": _digest([meta.features, meta.fps, sorted(instructions(meta).items())]),
        "episodes_digest": _digest([lengths, told]),
        "statistics_digest": _digest(meta.stats),
    }


def keep_identity(folder: Path, meta: LeRobotDatasetMetadata) -> None:
    """Write down, in the folder of a training, what it reads."""
    write_json(folder / FILE, identity(meta))


def check_identity(folder: Path, meta: LeRobotDatasetMetadata, remedy: str) -> None:
    """Stop where a dataset is no longer what a training read.

    Args:
        folder: of the training; one of an earlier version has nothing written down.
        meta: as it is now.
        remedy: what to do.

    Raises:
        UserError: naming what changed.

    """
    file = folder / FILE
    if not file.is_file():
        return
    try:
        then = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged; {remedy}") from None
    now = identity(meta)
    changed = [name for name in now if then.get(name) != now[name]]
    if not changed:
        return
    if then.get("episodes") != now["episodes"]:
        what = f"it had {then.get('episodes')} episodes and has {now['episodes']}"
    else:
        what = " and ".join(name.removesuffix("_digest") for name in changed) + " changed"
    raise UserError(f"the dataset '{meta.repo_id}' is not what training read: {what}; {remedy}")


def _digest(value: Any) -> str:
    return table_digest(json.loads(json.dumps(value, default=_plain)))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
