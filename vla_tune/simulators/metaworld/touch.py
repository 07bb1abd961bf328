"""Tasks of our own in Meta-World's scene: touch the ball whose colour the instruction names, among balls of other colours.

Meta-World's own tasks show one thing to act on, in nearly the same place every time: a policy can solve them without
looking closely, and the instruction only says which task it is. Here every task shows the same four balls in new
places, so the instruction decides where to go and only the picture says where that is.
"""

from __future__ import annotations

import itertools
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.envs.sawyer_reach_v3 import SawyerReachEnvV3
from numpy.typing import NDArray

from vla_tune.simulators.metaworld.tasks import COLOURS

RADIUS = 0.05
REGION = ((-0.3, 0.5), (0.3, 0.85))
"""Where balls may lie: the corners (x, y) in metres."""
TOUCHED = 0.08
"""How near the fingers' middle comes to a ball's centre, in metres, when it touches it."""
MIN_DISTANCE = 0.19
"""Between two balls' centres: more than twice `TOUCHED`, so no place touches two."""


class TouchEnv(SawyerReachEnvV3):  # type: ignore[misc]
    """Meta-World's reach task with one of four balls for its goal.

    A seed puts the balls in the same places whichever colour is wanted. The first ball that is touched decides: the
    right one is a success, and another ends the episode.
    """

    def __init__(self, colour: str, **settings: Any) -> None:
        self.colour = colour
        super().__init__(**settings)
        self._set_task_called = True  # there is no benchmark to set a task from
        self._partially_observable = False  # experts see the goal
        self.goal_space = Box(np.array((*REGION[0], RADIUS)), np.array((*REGION[1], RADIUS)), dtype=np.float64)
        del self.sawyer_observation_space  # cached while the goal was hidden, when it clipped the goal to zero

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        spec = mujoco.MjSpec.from_file(self.fullpath)
        spec.delete(spec.body("obj"))
        spec.site("goal").rgba = [0, 0, 0, 0]  # Meta-World moves it at every step; unseen, for it would give the right ball away
        for colour, rgb in COLOURS.items():  # placed off the origin: there MuJoCo takes a site for its body's frame and never looks again
            spec.worldbody.add_site(
                name=colour, type=mujoco.mjtGeom.mjGEOM_SPHERE, pos=[0, 0.6, RADIUS], size=[RADIUS, 0, 0], rgba=[*rgb, 1]
            )
        model = spec.compile()
        return model, mujoco.MjData(model)

    def reset_model(self) -> NDArray[np.float64]:
        self._reset_hand()
        for colour, place in zip(COLOURS, self._places(), strict=True):
            self.model.site(colour).pos = (*place, RADIUS)
        mujoco.mj_forward(self.model, self.data)
        self._target_pos = self.model.site(self.colour).pos.copy()
        self.maxReachDist = np.linalg.norm(self.init_tcp - self._target_pos)
        observation: NDArray[np.float64] = self._get_obs()
        return observation

    def step(  # type: ignore[override]  # gymnasium's annotation wants numbers alone in the last
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        observation, reward, done, truncated, info = super().step(action)
        touched = [colour for colour in COLOURS if np.linalg.norm(self.tcp_center - self.model.site(colour).pos) <= TOUCHED]
        info["success"] = float(touched == [self.colour])
        info["touched"] = touched[0] if touched else None  # no place touches two
        return observation, reward, done, truncated or bool(touched), info

    def _places(self) -> list[NDArray[np.float64]]:
        """A place for every ball; drawn all anew until no two are too near."""
        while True:
            places = list(self.np_random.uniform(*REGION, size=(len(COLOURS), 2)))
            if all(np.linalg.norm(a - b) >= MIN_DISTANCE for a, b in itertools.combinations(places, 2)):
                return places

    def _get_pos_objects(self) -> NDArray[np.float64]:
        return np.zeros(3)  # nothing can be moved

    def _get_quat_objects(self) -> NDArray[np.float64]:
        return np.array([0.0, 0.0, 0.0, 1.0])
