"""The simulators that policies act in, behind one protocol: which tasks there are, what they show, and a world for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_tune.errors import UserError

Observation = dict[str, Any]
"""Arrays by name, maybe nested, as lerobot's `preprocess_observation` reads them."""


class World(Protocol):
    """One task, simulated: a gymnasium environment that draws only what is asked for.

    render_observations: whether the observations of `reset` and `step` hold their pictures, or whatever is quickest in their place.
    """

    render_observations: bool

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Start the episode that this seed names, whatever came before."""

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Observation, reward, whether the task is solved, whether the episode ends for another reason, information."""

    def render(self) -> NDArray[np.uint8]:
        """A picture of the present state for a video, `[height, width, 3]`."""

    def close(self) -> None:
        """Free what drawing holds."""


class Simulator(ABC):
    """A benchmark of tasks for one robot.

    Attributes:
        title: its name for people.
        packages: whose versions its figures depend on.
        cameras: the pictures that it shows, by lerobot's names.
        state, action: how many numbers these have.

    """

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    cameras: ClassVar[tuple[str, ...]]
    state: ClassVar[int]
    action: ClassVar[int]

    @abstractmethod
    def tasks(self, name: str) -> list[str]:
        """The tasks of a group, or the one task of this name; a UserError names the nearest where there is none."""

    @abstractmethod
    def group(self, task: str) -> str | None:
        """The group whose success the benchmark reports, such as a suite or a difficulty."""

    @abstractmethod
    def instruction(self, task: str) -> str:
        """What the policy is told."""

    @abstractmethod
    def scene(self, task: str) -> str:
        """What tasks that show the same things have in common."""

    @abstractmethod
    def step_limit(self, task: str) -> int:
        """The benchmark's own limit, which is also the highest."""

    @abstractmethod
    def maker(self, task: str, *, image_size: int, step_limit: int) -> Callable[[], World]:
        """What makes a world of the task; it can be sent to another process."""

    @abstractmethod
    def processor(self) -> Any:
        """lerobot's processor of what its environments show, which comes before the policy's own."""

    @abstractmethod
    def check_seeds(self, first: int, last: int) -> None:
        """Raise a UserError where an evaluation may not use these seeds."""

    def close(self) -> None:  # noqa: B027 - nothing where nothing is shared
        """Free what the worlds of this thread shared."""


def simulator_of(names: list[str]) -> Simulator:
    """The simulator that all these tasks or groups belong to.

    Raises:
        UserError: they belong to two.

    """
    libero = [name for name in names if name.startswith("libero")]
    if libero and len(libero) < len(names):
        other = next(name for name in names if name not in libero)
        raise UserError(f"rollout.tasks: '{libero[0]}' is LIBERO's and '{other}' Meta-World's, another robot; evaluate them in two runs")
    if libero:
        from vla_tune.simulators.libero import Libero

        return Libero()
    from vla_tune.simulators.metaworld import Metaworld

    return Metaworld()


def tasks_of(simulator: Simulator, names: list[str]) -> list[str]:
    """The tasks that these names stand for, groups spelt out.

    Raises:
        UserError: no such task, or one is there twice.

    """
    tasks = [task for name in names for task in simulator.tasks(name)]
    for task in tasks:
        if tasks.count(task) > 1:
            raise UserError(f"rollout.tasks: '{task}' is there twice")
    return tasks
