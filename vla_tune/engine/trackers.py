"""Trackers beside `metrics.jsonl`, by accelerate's classes. One that fails is told once and left out; it never stops a training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.console import warn
from vla_tune.errors import one_line

if TYPE_CHECKING:
    from vla_tune.config import Config

FOLDER = "trackers"
"""Where in a run's folder they write what they keep on this machine; no part of the artifact."""
PROJECT = "vla-tune"
CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}
"""In `accelerate.tracking`."""


class Trackers:
    """The trackers of a run.

    Args:
        step: how many steps are taken already; a resumed run's later figures are written again.

    """

    def __init__(self, config: Config, run: Path, step: int) -> None:
        self._live: dict[str, Any] = {}
        for name in config.train.trackers:
            self._tried(name, functools.partial(self._start, name, config, run / FOLDER, step))

    def log(self, row: dict[str, Any]) -> None:
        """Send a row of `metrics.jsonl`; of a list with an entry a layer, its mean."""
        values = scalars(row)
        for name, tracker in list(self._live.items()):
            self._tried(name, functools.partial(tracker.log, values, step=row["step"]))

    def finish(self) -> None:
        """Close them."""
        for name, tracker in list(self._live.items()):
            self._tried(name, tracker.finish)

    def _start(self, name: str, config: Config, folder: Path, step: int) -> None:
        import accelerate
        import accelerate.tracking

        accelerate.PartialState()  # accelerate's logger wants it
        folder.mkdir(exist_ok=True)
        kind: Any = getattr(accelerate.tracking, CLASSES[name])
        settings: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": name, "logging_dir": folder, "purge_step": step + 1},
            "wandb": {"run_name": PROJECT, "name": config.name, "dir": str(folder)},
            "trackio": {"run_name": PROJECT, "name": config.name},
        }
        tracker = kind(**settings[name])
        tracker.start()
        tracker.store_init_configuration(flat(config.to_dict()))
        self._live[name] = tracker

    def _tried(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except ImportError:
            warn(f"train.trackers: {name} is left out, it is not installed here; install it, or take it out of train.trackers")
            self._live.pop(name, None)
        except Exception as error:  # a service that cannot be reached raises what it likes
            text = one_line(error)
            warn(f"train.trackers: {name} is left out from here on, it failed ({text}); metrics.jsonl has every row")
            self._live.pop(name, None)


@contextmanager
def open_trackers(config: Config, run: Path, step: int) -> Iterator[Trackers]:
    """The trackers of a run, closed at the end of the block."""
    trackers = Trackers(config, run, step)
    try:
        yield trackers
    finally:
        trackers.finish()


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row; of a list the mean of its numbers."""
    found: dict[str, float] = {}
    for name, value in row.items():
        numbers = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
        if numbers and name != "step":
            found[name] = sum(numbers) / len(numbers)
    return found


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted key; what is no number and no word, as text."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
