"""lerobot's LIBERO environment, with episodes by their number and pictures on demand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from lerobot.envs.libero import LiberoEnv, get_libero_dummy_action
from numpy.typing import NDArray
from robosuite.utils.errors import RandomizationError

from vla_tune.simulators.base import Observation

VIDEO_SIZE = 256

type Sensor = Callable[[dict[str, Any]], NDArray[np.uint8]]
type Sensors = tuple[list[Sensor], list[str]]
"""A camera's, with their names."""


class LiberoWorld(LiberoEnv):  # type: ignore[misc]
    """One task of a suite; initial states, settling steps, control, observations and success are lerobot's.

    robosuite samples what it shows shortly before the end of each control step, so pictures that are not wanted are left out
    where its cameras would draw them: with `render_observations` false they are black.

    Args:
        suite: LIBERO's object of the suite, and its name. number: of the task in it.
        image_size: edge of the pictures. step_limit: of an episode, which the caller keeps to.
    """

    def __init__(self, suite: Any, suite_name: str, number: int, *, image_size: int, step_limit: int) -> None:
        size = {"observation_width": image_size, "observation_height": image_size}
        super().__init__(suite, number, suite_name, episode_length=step_limit, obs_type="pixels_agent_pos", **size)
        self.num_steps_wait -= 1  # the last settling step is ours, because what is seen after it counts
        self.render_observations = True
        self._black = np.zeros((image_size, image_size, 3), np.uint8)

    def _ensure_env(self) -> None:
        if self._env is None:
            super()._ensure_env()
            made: Any = self._env
            inner = made.env
            made.reset = functools.partial(_reset, made)  # LIBERO's own passes over a Ctrl-C
            # Every reset makes the simulation anew, cameras included.
            inner._create_camera_sensors = functools.partial(self._cameras, inner._create_camera_sensors)  # noqa: SLF001

    def _cameras(
        self, create: Callable[..., tuple[list[Sensor], list[str]]], *arguments: Any, **settings: Any
    ) -> tuple[list[Sensor], list[str]]:
        sensors, names = create(*arguments, **settings)
        return [self._on_demand(sensor) for sensor in sensors], names

    def _on_demand(self, sensor: Sensor) -> Sensor:
        @functools.wraps(sensor)
        def draw(cache: dict[str, Any]) -> NDArray[np.uint8]:
            return sensor(cache) if self.render_observations else self._black

        return draw

    def reset(self, *, seed: int, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Start from the initial state of this number, and let it settle."""
        wanted, self.render_observations = self.render_observations, False
        self.init_state_id = seed
        _, info = super().reset(seed=seed, **options)
        self.render_observations = wanted
        raw, *_ = self._env.step(get_libero_dummy_action())
        return self._format_raw_obs(raw), info

    def render(self) -> NDArray[np.uint8]:
        """The first camera's picture of the present state for a video, upright; nothing that the policy sees changes by it."""
        camera = self.camera_name[0].removesuffix("_image")
        picture = self._env.sim.render(camera_name=camera, width=VIDEO_SIZE, height=VIDEO_SIZE)
        return np.ascontiguousarray(picture[::-1, ::-1])


def _reset(made: Any) -> Any:
    """Lay the objects out anew until they fit, as LIBERO does."""
    while True:
        try:
            return made.env.reset()
        except RandomizationError:
            continue
