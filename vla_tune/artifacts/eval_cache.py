"""What an evaluation has scored, kept on disk as it goes, so that an interrupted one goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_tune.artifacts.folder import write_json
from vla_tune.console import say, warn

type Scores = tuple[Tensor, Tensor | None]
"""The scores of a task's test samples `[n]`, and the task that each was taken to be of."""


class ScoreStore:
    """Scores by name.

    Args:
        folder: the stage's working folder, with what an earlier run of the stage left in it.
        basis: all that scores depend on; what was left from another is dropped.
    """

    def __init__(self, folder: Path, basis: dict[str, Any]) -> None:
        self._folder, self._basis = folder / "scored", json.loads(json.dumps(basis))
        self._head = self._folder / "basis.json"
        if self._known() == self._basis:
            say(f"going on after {len(list(self._folder.glob('*.safetensors')))} cells that an interrupted run scored")
        elif self._folder.exists():
            warn(f"{self._folder} holds scores of another training or of other settings; they are dropped")
            shutil.rmtree(self._folder)

    def _known(self) -> Any:
        """What the scores that are there depend on; None where there are none, or that is not known."""
        try:
            return json.loads(self._head.read_text())
        except (OSError, ValueError):
            return None

    def scored(self, name: str, score: Callable[[], Scores | None]) -> Scores | None:
        """What is known under a name, or else what `score` finds, which is known from then on; None where there is nothing to score."""
        from safetensors.torch import save_file

        file = self._folder / f"{name}.safetensors"
        if (known := _read(file)) is not None:
            return known
        found = score()
        if found is None:
            return None
        if not self._head.exists():
            self._folder.mkdir()
            write_json(self._head, self._basis)
        scores, tasks = found
        fresh = file.with_suffix(".new")
        save_file({"scores": scores, **({} if tasks is None else {"tasks": tasks})}, fresh)
        fresh.rename(file)
        return found

    def close(self) -> None:
        """Everything is scored, and stands elsewhere."""
        shutil.rmtree(self._folder)


def _read(file: Path) -> Scores | None:
    """What a file holds; None where there is none, or a power cut left it damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        known = load_file(file)
        return known["scores"], known.get("tasks")
    except (OSError, KeyError, SafetensorError):
        return None
