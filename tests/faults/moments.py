"""The moments at which a run can be killed: the changes that it makes to files, each told before it happens.

Python's audit hooks tell them, those of libraries written in Python too. A run makes much the same changes in the same order each time,
so a moment that was ugly once can be asked for by name.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"open": "write", "os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir"}
"""Audit events, and what a change is called here."""


@dataclass(frozen=True)
class Moment:
    """When a signal is sent: before the `count`-th change whose name holds `change`, or after `seconds`.

    change: the kind and the path in the run's folder, as `rename train.partial/checkpoints/4.new`.
    """

    number: int
    change: str = ""
    count: int = 1
    seconds: float | None = None


def watch(folder: Path, moment: Moment | None) -> list[str]:
    """Collect the changes below a folder from now on, in this process; send the signal to it when the moment has come."""
    changes: list[str] = []
    left = [moment.count if moment and moment.seconds is None else 0]

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not given[2] & WRITES) or not isinstance(given[0], str | bytes | os.PathLike):
            return
        path = absolute(os.fsdecode(given[0]), given[-1] if event != "open" else -1)
        if not path.startswith(f"{folder}{os.sep}"):
            return
        changes.append(f"{CHANGES[event]} {path[len(str(folder)) + 1 :]}")
        if left[0] and moment and moment.change in changes[-1]:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), moment.number)

    sys.addaudithook(hook)
    return changes


def absolute(path: str, descriptor: Any) -> str:
    """A path that may be relative to an open folder."""
    is_open = isinstance(descriptor, int) and descriptor >= 0
    return str((Path(f"/proc/self/fd/{descriptor}").readlink() if is_open else Path.cwd()) / path)
