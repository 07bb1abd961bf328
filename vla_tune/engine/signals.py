"""Being asked to stop: Ctrl-C and SIGTERM end a training after its next checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """The run was asked to stop; a checkpoint is written. `code` is the exit code, 128 + the signal."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them; a second one acts at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for caught in (signal.SIGINT, signal.SIGTERM):
        before[caught] = signal.signal(caught, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
