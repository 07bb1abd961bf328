"""The log of a training: a JSON object for every logged step, in `metrics.jsonl`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vla_tune.engine.trackers import Trackers

FILE = "metrics.jsonl"


class Log:
    """Writes rows, here and to the trackers; a figure stays on the device until its row is written."""

    def __init__(self, file: Any, trackers: Trackers) -> None:
        self._file, self._trackers = file, trackers

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, where a reader sees it at once."""
        numbers = {name: as_number(value) for name, value in row.items()}
        self._file.write(json.dumps(numbers) + "\n")
        self._file.flush()
        self._trackers.log(numbers)


class Pace:
    """Seconds a step since the last row, told where the device was waited for anyway."""

    def __init__(self) -> None:
        self._began, self._steps, self._data = time.perf_counter(), 0, 0.0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """In here a step's batch is loaded."""
        began = time.perf_counter()
        yield
        self._data += time.perf_counter() - began
        self._steps += 1

    def told(self) -> dict[str, float]:
        """Mean seconds a step without loading, and of loading; counts from here on anew."""
        whole, steps, data = time.perf_counter() - self._began, self._steps, self._data
        self.__init__()  # type: ignore[misc]
        return {"step_s": (whole - data) / steps, "data_s": data / steps}


@contextmanager
def open_log(folder: Path, trackers: Trackers) -> Iterator[Log]:
    """The log of the run in `folder`, to be gone on with."""
    with (folder / FILE).open("a") as file:
        yield Log(file, trackers)


def as_number(value: Any) -> Any:
    """Tensors as plain numbers, in lists too."""
    if isinstance(value, list):
        return [as_number(one) for one in value]
    return value.item() if isinstance(value, torch.Tensor) else value


def cut(folder: Path, step: int) -> None:
    """Drop the rows of steps after `step`, which a resumed run will write again."""
    file = folder / FILE
    if not file.exists():
        return
    kept = [line for line in file.read_text().splitlines() if (number := _step_of(line)) is not None and number <= step]
    fresh = file.with_name(f"{FILE}.new")
    fresh.write_text("".join(f"{line}\n" for line in kept))
    fresh.replace(file)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a row cut short by a crash
        return None
