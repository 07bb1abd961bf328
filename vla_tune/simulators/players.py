"""A world that plays an episode in pieces, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vla_tune.errors import RunError
from vla_tune.simulators.base import Observation, Simulator

VIDEO_EVERY = 2
"""Every how many steps a frame of a video is drawn."""


@dataclass
class Outcome:
    """How an episode stands after the actions of one policy call.

    touched: the colour of the ball that was touched, in our touch tasks. frames: of its video, once it is done.
    """

    steps: int
    total_reward: float
    success: bool
    done: bool
    touched: str | None = None
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


class Player(gym.Wrapper):  # type: ignore[type-arg,misc]
    """Plays one task's episodes, each by one `begin`, then `observe` and `follow` by turns until it is done.

    Of what the world shows only what the policy's next call reads is drawn.
    """

    def __init__(self, make_world: Callable[[], Any], step_limit: int) -> None:
        super().__init__(make_world())
        self._limit = step_limit

    def begin(self, seed: int, filmed: bool) -> None:
        """Start the episode of this seed; `filmed`: keep pictures for a video."""
        self._filmed, self._frames = filmed, list[NDArray[np.uint8]]()
        self._steps, self._reward = 0, 0.0
        self._draw(wanted=True)
        self._seen, _ = self.env.reset(seed=seed)

    def observe(self) -> Observation:
        """What the policy's next call reads."""
        return self._seen

    def follow(self, actions: NDArray[np.float32]) -> Outcome:
        """Take the actions of one policy call, `[n_action_steps, action]`, as far as the episode goes."""
        for left, action in zip(reversed(range(len(actions))), actions, strict=True):
            if self._filmed and self._steps % VIDEO_EVERY == 0:
                self._frames.append(self._frame())
            self._steps += 1
            self._draw(wanted=left == 0 and self._steps < self._limit)
            self._seen, reward, success, truncated, info = self.env.step(action)
            self._reward += float(reward)
            done = bool(success or truncated or self._steps >= self._limit)
            if done:
                break
        if done and self._filmed:
            self._frames.append(self._frame())
        return Outcome(self._steps, self._reward, bool(success), done, info.get("touched"), self._frames if done else [])

    def _draw(self, *, wanted: bool) -> None:
        self.env.unwrapped.render_observations = wanted  # type: ignore[attr-defined]

    def _frame(self) -> NDArray[np.uint8]:
        frame: NDArray[np.uint8] = self.env.render()  # type: ignore[assignment]
        return frame


def player_maker(simulator: Simulator, image_size: int, step_limit: int | None) -> Callable[[str], functools.partial[Player]]:
    """Of a task: what makes a player of it; it can be sent to another process. Without a limit, the simulator's own counts."""

    def make_player(task: str) -> functools.partial[Player]:
        limit = step_limit or simulator.step_limit(task)
        return functools.partial(Player, simulator.maker(task, image_size=image_size, step_limit=limit), limit)

    return make_player


class Seat(Protocol):
    """Where a player plays. Each `start` of one of its methods is followed by a `finish`, which has the result."""

    def start(self, method: str, *arguments: Any) -> None: ...
    def finish(self) -> Any: ...
    def close(self) -> None: ...


class Here:
    """In this process, when the result is asked for."""

    def __init__(self, make_player: Callable[[], Player]) -> None:
        self._player = make_player()

    def start(self, method: str, *arguments: Any) -> None:
        self._call = functools.partial(getattr(self._player, method), *arguments)

    def finish(self) -> Any:
        return self._call()

    def close(self) -> None:
        self._player.close()


class Apart:
    """In a process of its own, at once: gymnasium's asynchronous vector environment of one."""

    def __init__(self, make_player: Callable[[], Player]) -> None:
        self._vector = gym.vector.AsyncVectorEnv([make_player], shared_memory=False, context="forkserver")

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
