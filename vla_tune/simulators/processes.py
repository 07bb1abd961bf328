"""Where a world runs: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym

from vla_tune.errors import RunError
from vla_tune.simulators.chunks import ChunkedWorld


class WorldHandle(Protocol):
    """A world, wherever it runs. Each `start` of one of its methods is followed by a `finish`, which has the result."""

    def start(self, method: str, *arguments: Any) -> None: ...
    def finish(self) -> Any: ...
    def close(self) -> None: ...


class InProcess:
    """In this process, when the result is asked for."""

    def __init__(self, make_world: Callable[[], ChunkedWorld]) -> None:
        self._world = make_world()

    def start(self, method: str, *arguments: Any) -> None:
        self._call = functools.partial(getattr(self._world, method), *arguments)

    def finish(self) -> Any:
        return self._call()

    def close(self) -> None:
        self._world.close()


class WorldProcess:
    """In a process of its own, at once: gymnasium's asynchronous vector environment of one."""

    def __init__(self, make_world: Callable[[], ChunkedWorld]) -> None:
        self._vector = gym.vector.AsyncVectorEnv([make_world], shared_memory=False, context="forkserver")

    def start(self, method: str, *arguments: Any) -> None:
        self._vector.call_async(method, *arguments)

    def finish(self) -> Any:
        try:
            return self._vector.call_wait()[0]
        except (EOFError, ConnectionError):
            raise RunError("the process of a world died; with rollout.processes=false what it says is seen") from None

    def close(self) -> None:
        with contextlib.suppress(Exception):  # what the last call would have brought, or that its process is gone
            self._vector.close(terminate=True)
        for process in self._vector.processes:
            process.terminate()
