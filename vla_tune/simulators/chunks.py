"""A world that takes all actions of one policy call at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

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


class ChunkedWorld(gym.Wrapper):  # type: ignore[type-arg,misc]
    """Runs one task's episodes, each by one `begin`, then `observe` and `execute` by turns until it is done.

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

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
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


def world_maker(simulator: Simulator, image_size: int, step_limit: int | None) -> Callable[[str], functools.partial[ChunkedWorld]]:
    """Of a task: what makes its world; it can be sent to another process. Without a limit, the simulator's own counts."""

    def maker(task: str) -> functools.partial[ChunkedWorld]:
        limit = step_limit or simulator.step_limit(task)
        return functools.partial(ChunkedWorld, simulator.maker(task, image_size=image_size, step_limit=limit), limit)

    return maker
