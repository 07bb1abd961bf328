"""Running planned episodes together, so that policy calls share a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_tune.simulators.base import Observation
from vla_tune.simulators.chunks import ChunkedWorld, Outcome
from vla_tune.simulators.episodes import Episode
from vla_tune.simulators.processes import InProcess, WorldHandle, WorldProcess

type Act = Callable[[list[Observation], list[str], list[tuple[str, int, int]]], NDArray[np.float32]]
type MakeWorld = Callable[[], ChunkedWorld]


class Runner:
    """Runs planned episodes, up to `parallel` at a time.

    Only pictures that a call reads, and those of recorded episodes, are drawn.

    Args:
        act: the actions for a batch of worlds, as `Actor.__call__`.
        maker: of a task, what makes its world.
        processes: whether each world runs in a process of its own.
    """

    def __init__(self, act: Act, maker: Callable[[str], MakeWorld], *, parallel: int, processes: bool) -> None:
        self._act, self._maker, self._parallel = act, maker, parallel
        self._start_world: Callable[[MakeWorld], WorldHandle] = WorldProcess if processes else InProcess
        self._idle: dict[str, list[WorldHandle]] = {}
        self._open: list[WorldHandle] = []

    def run(self, episodes: list[Episode], on_done: Callable[[Episode], None]) -> None:
        """Fill in the results; `on_done` is called with each episode that ends."""
        waiting, running = list(episodes), list[_Running]()
        try:
            while waiting or running:
                new = [self._start(self._next(waiting)) for _ in range(min(len(waiting), self._parallel - len(running)))]
                running += new
                for episode in new:
                    episode.world.finish()
                observations = _each(running, "observe")
                chunks = self._act(
                    observations,
                    [episode.plan.instruction for episode in running],
                    [(episode.plan.task, episode.plan.seed, episode.calls) for episode in running],
                )
                for episode, outcome in zip(running, _each(running, "execute", chunks), strict=True):
                    if episode.take(outcome):
                        self._idle[episode.plan.task].append(episode.world)
                        on_done(episode.plan)
                running = [episode for episode in running if not episode.done]
                self._leave({episode.task for episode in waiting})
        finally:
            while self._open:
                with contextlib.suppress(Exception):  # a world that was interrupted while it was made; what interrupted it is told
                    self._open.pop().close()
            self._idle.clear()

    def _next(self, waiting: list[Episode]) -> Episode:
        """The next episode, one of a task with an idle world first: making a world takes longer than resetting it."""
        ready = (index for index, episode in enumerate(waiting) if self._idle.get(episode.task))
        return waiting.pop(next(ready, 0))

    def _start(self, episode: Episode) -> _Running:
        idle = self._idle.setdefault(episode.task, [])
        world = idle.pop() if idle else self._new_world(episode.task)
        world.start("begin", episode.seed, episode.recorded)
        return _Running(episode, world)

    def _new_world(self, task: str) -> WorldHandle:
        world = self._start_world(self._maker(task))
        self._open.append(world)
        return world

    def _leave(self, wanted: set[str]) -> None:
        """Close the idle worlds of every other task."""
        for task in self._idle.keys() - wanted:
            while self._idle[task]:
                world = self._idle[task].pop()
                self._open.remove(world)
                world.close()


@dataclass
class _Running:
    """An episode under way."""

    plan: Episode
    world: WorldHandle
    calls: int = 0
    done: bool = False

    def take(self, outcome: Outcome) -> bool:
        """Note how the episode stands; whether it ended."""
        self.calls += 1
        episode = self.plan
        episode.steps, episode.total_reward, episode.success = outcome.steps, outcome.total_reward, outcome.success
        episode.touched, episode.frames, self.done = outcome.touched, outcome.frames, outcome.done
        return self.done


def _each(running: list[_Running], method: str, arguments: Any = None) -> list[Any]:
    """The results of one method of every world, all started before the first is waited for."""
    for index, episode in enumerate(running):
        episode.world.start(method, *([] if arguments is None else [arguments[index]]))
    return [episode.world.finish() for episode in running]
