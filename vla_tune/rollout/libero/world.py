"""lerobot's LIBERO environment, whose episodes follow from their initial state alone and draw only what is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.envs.libero import LiberoEnv
from numpy.typing import NDArray

from vla_tune.rollout.worlds import Observation


class LiberoWorld(LiberoEnv):  # type: ignore[misc]
    """One task of a suite.

    The initial state, the settling steps, the control and the success predicate are lerobot's. Observations are of the
    present state: robosuite samples its own at a moment within the control step that moves on with every reset, so in a
    world that has been reset before they are up to one control step old.

    Args:
        suite: LIBERO's object of the suite, and its name. number: of the task in it.
        image_size: edge of the pictures. step_limit: of an episode, which the caller keeps to.
    """

    def __init__(self, suite: Any, suite_name: str, number: int, *, image_size: int, step_limit: int) -> None:
        size = {"observation_width": image_size, "observation_height": image_size}
        super().__init__(suite, number, suite_name, episode_length=step_limit, obs_type="pixels_agent_pos", **size)
        self._looking = True

    def reset(self, *, seed: int, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Start from the initial state of this number, and let it settle."""
        self._ensure_env()
        self._look(looking=False)
        self.init_state_id = seed
        observation, info = super().reset(seed=seed, **options)
        return observation, info

    def observe(self) -> Observation:
        """The present state with its pictures, in lerobot's LIBERO names; upside down, as the simulator draws them."""
        self._look(looking=True)
        raw = self._env.env._get_observations(force_update=True)  # noqa: SLF001 - as lerobot asks for it
        observation: Observation = super()._format_raw_obs(raw)
        self._look(looking=False)
        return observation

    def render(self) -> NDArray[np.uint8]:
        """The first camera's picture, upright."""
        picture = next(iter(self.observe()["pixels"].values()))
        return np.ascontiguousarray(picture[::-1, ::-1])

    def _look(self, *, looking: bool) -> None:
        """Whether the simulator draws its cameras at every step."""
        self._looking = looking
        for camera in self.camera_name:
            self._env.env.modify_observable(camera, "enabled", looking)

    def _format_raw_obs(self, raw_obs: dict[str, Any]) -> Observation:
        return super()._format_raw_obs(raw_obs) if self._looking else {}
