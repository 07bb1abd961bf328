"""What a simulator is: which tasks it has, what they show, and a world for each. `registry.py` finds them."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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


class Assets(NamedTuple):
    """What a simulator fetches from the Hub before its first world: in words, the data set's name, whether it is here already."""

    what: str
    repo: str
    here: bool


class Simulator(ABC):
    """A benchmark of tasks for one robot; made and asked for names without importing what it simulates with.

    Attributes:
        title: its name for people.
        module: what is imported from its installation.
        packages: whose versions its figures depend on.
        incomparable: why `lerobot-eval` cannot run the same episodes, where it cannot.
        cameras: the pictures that it shows, by lerobot's names.
        state, action: how many numbers these have.

    """

    title: ClassVar[str]
    module: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    incomparable: ClassVar[str] = ""
    cameras: ClassVar[tuple[str, ...]]
    state: ClassVar[int]
    action: ClassVar[int]

    @abstractmethod
    def names(self) -> list[str]:
        """The tasks and groups that can be asked for."""

    def knows(self, name: str) -> bool:
        """Whether a task or group is its own to answer for, even if it is misspelt."""
        return name in self.names()

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

    def alternatives(self, task: str) -> list[str]:  # noqa: ARG002
        """Further tasks of the same scene, whose instructions the language probe may give although they are not evaluated."""
        return []

    def followed(self, task: str, instruction: str, touched: str | None) -> bool | None:  # noqa: ARG002
        """Whether an episode did what it was told instead of its task, from what it `touched`; None where that cannot be seen."""
        return None

    @abstractmethod
    def step_limit(self, task: str) -> int:
        """The benchmark's own limit, which is also the highest."""

    def installed(self) -> bool:
        """Whether its package is on this machine."""
        return importlib.util.find_spec(self.module) is not None

    @abstractmethod
    def prepare(self) -> None:
        """Import what its worlds need.

        Raises:
            UserError: it is not installed, cannot draw, or lacks its assets.

        """

    def assets(self) -> Assets | None:
        """What is fetched before its first world, if anything."""
        return None

    @abstractmethod
    def maker(self, task: str, *, image_size: int, step_limit: int) -> Callable[[], World]:
        """What makes a world of the task; it can be sent to another process."""

    @abstractmethod
    def processor(self) -> Any:
        """lerobot's processor of what its environments show, which comes before the policy's own."""

    @abstractmethod
    def check_seeds(self, first: int, last: int) -> None:
        """Raise a UserError where an evaluation may not use these seeds."""

    def lerobot_config(self, tasks: list[str], *, image_size: int, step_limit: int | None) -> Any:
        """lerobot's configuration of the environments of these tasks, where it is comparable."""
        raise NotImplementedError

    def register(self) -> None:  # noqa: B027 - lerobot knows its own
        """Make its environments known to lerobot."""

    def close(self) -> None:  # noqa: B027 - nothing where nothing is shared
        """Free what the worlds of this thread shared."""
