"""What tells one state of a dataset from another."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.data.instructions import instructions
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


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


def check_identity(then: dict[str, Any] | None, meta: LeRobotDatasetMetadata, remedy: str) -> None:
    """Stop where a dataset is no longer what it was.

    Args:
        then: what `identity` said; None where an earlier version wrote it down nowhere.
        meta: as it is now.
        remedy: what to do.

    Raises:
        UserError: naming what changed.

    """
    now = identity(meta)
    if then is None or (changed := [name for name in now if then.get(name) != now[name]]) == []:
        return
    if then.get("episodes") != now["episodes"]:
        what = f"it had {then.get('episodes')} episodes and has {now['episodes']}"
    else:
        what = " and ".join(name.removesuffix("_digest") for name in changed) + " changed"
    raise UserError(f"the dataset '{meta.repo_id}' is not what training read: {what}; {remedy}")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
