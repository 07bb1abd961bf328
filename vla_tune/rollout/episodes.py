"""Closed-loop episodes: which ones, how they are run together, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_tune.rollout.calls import call_noise
from vla_tune.rollout.worlds import FastMetaworldEnv, Observation

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

VIDEO_SIZE = 256
VIDEO_EVERY = 2
"""Every how many steps a frame of a video is drawn."""


@dataclass
class Episode:
    """One episode, before and after it was run.

    given: which instruction it gets, `right` (the task's own) or one of the language probe's.
    instruction: its text; None until the world tells the task's own.
    touched: the colour of the ball that was touched, in our touch tasks.
    frames: uint8 `[VIDEO_SIZE, VIDEO_SIZE, 3]` pictures, where the episode is recorded.
    """

    task: str
    seed: int
    recorded: bool = False
    given: str = "right"
    instruction: str | None = None
    success: bool = False
    touched: str | None = None
    steps: int = 0
    total_reward: float = 0.0
    frames: list[NDArray[np.uint8]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The episode's row in `episodes.parquet`."""
        return {
            "task": self.task,
            "instruction": self.instruction,
            "seed": self.seed,
            "success": self.success,
            "steps": self.steps,
            "return": self.total_reward,
        }

    def probe_row(self) -> dict[str, Any]:
        """The episode's row in `probe.parquet`."""
        return {"given": self.given, **self.row(), "touched": self.touched}


def plan(tasks: list[str], episodes: int, first_seed: int, videos: int) -> list[Episode]:
    """`episodes` dealt evenly over the tasks: episode k of a task has seed `first_seed + k`; the first `videos` are recorded."""
    return [Episode(tasks[i % len(tasks)], first_seed + i // len(tasks), recorded=i < videos) for i in range(episodes)]


class Actor:
    """A policy with lerobot's processors around it, for several worlds at once.

    The noise of a call is drawn from the episode's seed and the call's number in it, so that an episode does not depend on
    which others share its batch.
    """

    def __init__(self, policy: PreTrainedPolicy, processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]) -> None:
        self._policy, (self._before, self._after) = policy, processors

    def __call__(self, observations: list[Observation], instructions: list[str], calls: list[tuple[str, int, int]]) -> NDArray[np.float32]:
        """The actions to take, `[worlds, n_action_steps, action]`; `calls` are (task, episode seed, number of the call)."""
        from lerobot.envs import preprocess_observation

        config = self._policy.config
        stacked = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        batch = self._before({**preprocess_observation(stacked), "task": instructions})
        noise = torch.stack([call_noise(*call, (config.chunk_size, config.max_action_dim)) for call in calls])
        with torch.inference_mode():
            chunk = self._policy.predict_action_chunk(batch, noise=noise.to(config.device))
            actions: Tensor = self._after(chunk[:, : config.n_action_steps])
        return actions.cpu().numpy()


class Runner:
    """Runs planned episodes, up to `parallel` at a time, whose policy calls share a batch.

    Only pictures that a call reads, and those of recorded episodes, are drawn.
    """

    def __init__(self, actor: Actor, *, parallel: int, step_limit: int, image_size: int) -> None:
        self._actor, self._parallel, self._step_limit, self._image_size = actor, parallel, step_limit, image_size
        self._idle: dict[str, list[FastMetaworldEnv]] = {}

    def run(self, episodes: list[Episode], on_done: Callable[[Episode], None]) -> None:
        """Fill in the results; `on_done` is called with each episode that ends."""
        waiting, running = list(episodes), list[_Running]()
        try:
            while waiting or running:
                while waiting and len(running) < self._parallel:
                    running.append(self._start(self._next(waiting)))
                chunks = self._actor(
                    [episode.env.observe() for episode in running],
                    [str(episode.plan.instruction) for episode in running],
                    [(episode.plan.task, episode.plan.seed, episode.calls) for episode in running],
                )
                for episode, actions in zip(running, chunks, strict=True):
                    if episode.follow(actions, self._step_limit):
                        self._idle[episode.plan.task].append(episode.env)
                        on_done(episode.plan)
                running = [episode for episode in running if not episode.done]
        finally:
            for env in (*(episode.env for episode in running), *(env for envs in self._idle.values() for env in envs)):
                env.close()

    def _next(self, waiting: list[Episode]) -> Episode:
        """The next episode, one of a task with an idle world first: making a world takes longer than resetting it."""
        ready = (index for index, episode in enumerate(waiting) if self._idle.get(episode.task))
        return waiting.pop(next(ready, 0))

    def _start(self, episode: Episode) -> _Running:
        worlds = self._idle.setdefault(episode.task, [])
        env = worlds.pop() if worlds else self._new_world(episode.task)
        env.reset(seed=episode.seed)
        if episode.instruction is None:
            episode.instruction = env.task_description
        return _Running(episode, env)

    def _new_world(self, task: str) -> FastMetaworldEnv:
        env = FastMetaworldEnv(
            task,
            obs_type="pixels_agent_pos",
            observation_width=self._image_size,
            observation_height=self._image_size,
            visualization_width=VIDEO_SIZE,
            visualization_height=VIDEO_SIZE,
            episode_length=self._step_limit,
        )
        env.render_observations = False
        return env


@dataclass
class _Running:
    """An episode under way in its world."""

    plan: Episode
    env: FastMetaworldEnv
    calls: int = 0
    done: bool = False

    def follow(self, actions: NDArray[np.float32], step_limit: int) -> bool:
        """Take the actions of one policy call, `[n_action_steps, action]`; whether the episode ended."""
        self.calls += 1
        episode = self.plan
        for action in actions:
            if episode.recorded and episode.steps % VIDEO_EVERY == 0:
                episode.frames.append(self.env.render())
            _, reward, success, truncated, info = self.env.step(action)
            episode.steps += 1
            episode.total_reward += reward
            episode.success, episode.touched = success, info.get("touched")
            self.done = success or truncated or episode.steps >= step_limit
            if self.done:
                break
        if self.done and episode.recorded:
            episode.frames.append(self.env.render())
        return self.done
