"""Closed-loop episodes: which ones, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_tune.console import warn
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.config import RolloutConfig
    from vla_tune.simulators.base import Simulator


@dataclass
class Episode:
    """One episode, before and after it was run.

    instruction: what it is told. given: which that is, `right` (the task's own) or one of the language probe's.
    recorded: whether a video is made. frames: its pictures, uint8 `[height, width, 3]`.
    touched: the colour of the ball that was touched, in our touch tasks.
    """

    task: str
    seed: int
    instruction: str
    recorded: bool = False
    given: str = "right"
    success: bool = False
    touched: str | None = None
    steps: int = 0
    total_reward: float = 0.0
    frames: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def name(self) -> tuple[str, int, str]:
        """What tells it from the others of an evaluation."""
        return self.task, self.seed, self.given

    @property
    def video(self) -> str:
        """The name of its video's file."""
        return f"{self.task.replace('/', '-')}-seed{self.seed}-{'success' if self.success else 'failure'}.mp4"

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


def plan(instructions: dict[str, str], episodes: int, first_seed: int, videos: int) -> list[Episode]:
    """`episodes` dealt evenly over the tasks, which come with their instructions.

    Episode k of a task has seed `first_seed + k`; the first `videos` of all are recorded.
    """
    tasks = list(instructions)
    return [
        Episode(tasks[i % len(tasks)], first_seed + i // len(tasks), instructions[tasks[i % len(tasks)]], recorded=i < videos)
        for i in range(episodes)
    ]


def check_plan(config: RolloutConfig, simulator: Simulator, tasks: list[str]) -> None:
    """Whether a simulator allows a plan of these tasks.

    Raises:
        UserError: it does not: seeds of demonstrations, initial states that there are not, a limit above its own.

    """
    for task in tasks if config.step_limit else []:
        most = simulator.step_limit(task)
        if config.step_limit and config.step_limit > most:
            raise UserError(f"rollout.step_limit={config.step_limit}: {simulator.title} ends every episode of {task} after {most} steps")
    simulator.check_seeds(config.first_seed, config.first_seed + -(-config.episodes // len(tasks)) - 1)
    if config.episodes < len(tasks):
        warn(f"rollout.episodes={config.episodes}: of the {len(tasks)} tasks those after {tasks[config.episodes - 1]} are left out")
