"""Checkpoints are written in the background while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vla_tune.console import warn
from vla_tune.engine import checkpoint

if TYPE_CHECKING:
    from vla_tune.engine.checkpoint import Snapshot


class Writer:
    """Writes a run's checkpoints in a thread, one at a time; leaving the block waits for the last.

    Raises:
        Exception: whatever went wrong in writing (a full disk), at the next `save` or `wait`, or at the end of the block.

    """

    def __init__(self, run: Path, keep: int, *, keep_best: bool) -> None:
        self._run, self._keep, self._keep_best = run, keep, keep_best
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Write what `take` copies, once the last checkpoint is written: there is one copy at a time."""
        self.wait()
        self._pending = self._pool.submit(checkpoint.write, self._run, take(), self._keep, keep_best=self._keep_best)

    def wait(self) -> None:
        """Until the last checkpoint is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Writer:
        checkpoint.clear(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not isinstance(error, KeyboardInterrupt):  # a second Ctrl-C does not wait
                self.wait()
        except Exception as failed:
            if error is None:
                raise
            warn(f"the last checkpoint could not be written ({failed})")  # what ended the run matters more
        finally:
            self._pool.shutdown(wait=False)
