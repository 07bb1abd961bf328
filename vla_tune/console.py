"""What a person sees: rich on a terminal, plain lines when piped or in CI."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vla_tune.errors import shown

AS_TEXT: Any = {"highlight": False, "markup": False, "emoji": False}
"""Names of tasks, joints and files are text, also where they look like rich's markup."""
PLAIN_EVERY_S = 15.0
"""Seconds between two progress lines when there is no terminal."""


def is_rich() -> bool:
    """Whether stdout is a terminal that a person looks at."""
    return sys.stdout.isatty() and not os.environ.get("CI")


def console() -> Console:
    """Where results go (stdout); what is printed there is text, whatever looks like rich's markup in it."""
    if is_rich():
        return Console(**AS_TEXT)
    return Console(**AS_TEXT, force_terminal=False, no_color=True, width=160, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user."""
    console().print(shown(text))


def warn(text: str) -> None:
    """A setting that is skipped, or a result to be careful with; on stderr, so that it never mixes with results."""
    Console(**AS_TEXT, stderr=True, no_color=not sys.stderr.isatty()).print(f"warning: {shown(text)}", soft_wrap=True)


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table; numbers are passed already formatted."""
    grid = Table(title=shown(title), title_justify="left")
    for number, name in enumerate(header):
        grid.add_column(shown(name), justify="left" if number == 0 else "right")
    for row in rows:
        grid.add_row(*map(shown, row))
    console().print(grid)


class Counter:
    """Counts finished units of a long job and shows rate and time left."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = shown(description), total, unit
        self.done = self._start = 0
        self._began = self._shown = time.monotonic()
        self._bar: tuple[Progress, TaskID] | None = None
        self._note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note`: see there."""
        self.done += count
        note = self._note = shown(note) or self._note
        if self._bar:
            bar, task = self._bar
            bar.update(task, advance=count, rate=self.pace, note=note)
        elif self.description and time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._shown = time.monotonic()
            left = (self.total - self.done) / max(self.rate, 1e-9)
            say(f"{self.description}: {self.done}/{self.total} {self.unit}, {self.pace}, {_time(left)} left {note}".rstrip())

    def note(self, text: str) -> None:
        """A figure worth seeing, such as the loss, until the next one."""
        self._note = shown(text)

    def skip(self, count: int) -> None:
        """`count` units were done by an earlier run; they do not count into the rate."""
        self.done = self._start = count
        if self._bar:
            self._bar[0].update(self._bar[1], completed=count)

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._start) / max(time.monotonic() - self._began, 1e-9)

    @property
    def pace(self) -> str:
        """The rate, or how long a unit takes where that is longer than a second."""
        return f"{self.rate:.1f} {self.unit}/s" if self.rate >= 1 or not self.rate else f"{1 / self.rate:.1f} s each"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Counter]:
    """A progress bar on a terminal, else a line now and then and one at the end; without a description, nothing."""
    counter = Counter(description, total, unit)
    if not description:
        yield counter
        return
    if not is_rich():
        yield counter
        if counter.done > counter._start:  # noqa: SLF001 - the counter is this module's own
            say(f"{description}: {counter.done}/{total} {unit}, {counter.pace}")
        return
    name, rate, note = (TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[rate]", "fields[note]"))
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(name, BarColumn(), MofNCompleteColumn(), rate, *times, note, console=console()) as bar:
        counter._bar = (bar, bar.add_task(counter.description, total=total, rate="", note=""))  # noqa: SLF001
        yield counter
