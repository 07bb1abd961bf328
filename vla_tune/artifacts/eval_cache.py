"""What an evaluation has scored, kept on disk as it goes, so that an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_tune.artifacts.store import KeptFiles
from vla_tune.console import say

KEPT = "scored"
"""What an interrupted evaluation leaves in its working folder."""

type Scores = tuple[Tensor, Tensor | None]
"""The scores of a task's test samples `[n]`, and the task that each was taken to be of."""


class ScoreStore:
    """Scores by name.

    Args:
        folder: the stage's working folder, with what an earlier run of the stage left in it.
        basis: all that scores depend on; what was left from another is dropped.

    """

    def __init__(self, folder: Path, basis: dict[str, Any]) -> None:
        self._kept = KeptFiles(folder / KEPT, basis, "scores")
        if len(self._kept):
            say(f"going on after {len(self._kept)} cells that an interrupted run scored")

    def scored(self, name: str, score: Callable[[], Scores | None]) -> Scores | None:
        """What is known under a name, or else what `score` finds, which is known from then on; None where there is nothing to score."""
        from safetensors.torch import save_file

        file = f"{name}.safetensors"
        if (known := _read(self._kept.folder / file)) is not None:
            return known
        found = score()
        if found is not None:
            scores, tasks = found
            self._kept.put(file, lambda path: save_file({"scores": scores, **({} if tasks is None else {"tasks": tasks})}, path))
        return found


def _read(file: Path) -> Scores | None:
    """What a file holds; None where there is none, or a power cut left it damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        known = load_file(file)
        return known["scores"], known.get("tasks")
    except (OSError, KeyError, SafetensorError):
        return None
