"""Meta-World as demonstrations and rollouts see it: lerobot's environment with pictures of the asked size, drawn fast.

lerobot's `MetaworldEnv` ignores the size it is asked for and draws every picture with shadows, reflections and
multisampling. Here they are off; physics, camera and seeds are lerobot's. The environment is registered as
`metaworld_fast`, so that `lerobot-eval --env.discover_packages_path=vla_tune.simulators --env.type=metaworld_fast` makes the same world.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_tune.errors import UserError
from vla_tune.simulators.base import Observation
from vla_tune.simulators.gl import no_gl
from vla_tune.simulators.metaworld.drawing import renderer_of
from vla_tune.simulators.metaworld.tasks import MAX_STEPS, TOUCH_TASKS, check_task

try:
    import gymnasium as gym
    import metaworld
    from lerobot.envs.configs import EnvConfig
    from lerobot.envs.configs import MetaworldEnv as MetaworldConfig
    from lerobot.envs.metaworld import ACTION_DIM, DIFFICULTY_TO_TASKS, TASK_DESCRIPTIONS, TASK_POLICY_MAPPING, MetaworldEnv
    from lerobot.envs.utils import _LazyAsyncVectorEnv
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import SawyerReachV3Policy

    from vla_tune.simulators.metaworld.touch import TouchEnv
except ModuleNotFoundError as missing:
    raise UserError(f"Meta-World is not installed (no module '{missing.name}'); pip install 'vla-tune[metaworld]'") from None
except (ImportError, AttributeError, RuntimeError, OSError) as failure:  # mujoco.egl raises any of them without libEGL
    raise no_gl(failure) from None

# lerobot's environment looks its instruction and its expert up here.
TASK_DESCRIPTIONS.update(TOUCH_TASKS)
TASK_POLICY_MAPPING.update(dict.fromkeys(TOUCH_TASKS, SawyerReachV3Policy))


class FastMetaworldEnv(MetaworldEnv):  # type: ignore[misc]
    """One task of Meta-World.

    Through `reset` and `step` every observation holds its picture, as gymnasium asks. A caller that reads only some of
    them sets `render_observations` to false and calls `observe` when it wants one.

    Args:
        task: a Meta-World task, such as `reach-v3`, or one of ours, such as `touch-red`.
        observation_width, observation_height: the size of the pictures in observations.
        visualization_width, visualization_height: the size of the pictures that `render` returns, for videos.
        episode_length: the step limit, at most Meta-World's 500; `step` truncates there.

    Raises:
        UserError: no such task, or (at the first picture) no GL backend.
    """

    def __init__(self, task: str, *, episode_length: int = MAX_STEPS, **settings: Any) -> None:
        check_task(task.replace("metaworld-", ""))
        super().__init__(task, **settings)
        self._env: Any = None  # made by the first reset, in the process that steps it
        self._max_episode_steps = min(episode_length, MAX_STEPS)
        self._steps = 0
        self.render_observations = True
        self.raw_observation: NDArray[np.float64] = np.zeros(39)
        """Meta-World's own observation, `[39]`, which the scripted experts read."""

    def _ensure_env(self) -> None:
        if self._env is not None:
            return
        if self.task in TOUCH_TASKS:
            env = TouchEnv(self.task.removeprefix("touch-"), render_mode="rgb_array", camera_name=self.camera_name)
        else:
            benchmark = _benchmark(self.task)
            env = benchmark.train_classes[self.task](render_mode="rgb_array", camera_name=self.camera_name)
            env.set_task(benchmark.train_tasks[0])
        if self.camera_name == "corner2":
            env.model.cam_pos[2] = [0.75, 0.075, 0.7]  # as lerobot places it
        env.reset()
        env._freeze_rand_vec = False  # noqa: SLF001 - the only way to have seeds move the objects
        env.seeded_rand_vec = True
        self._env = env

    def reset(self, seed: int | None = None, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the same seed gives the same episode whatever came before."""
        self._steps = 0
        observation, info = super().reset(seed=seed, **options)
        return observation, info

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As lerobot's, but the scene stays as it is on success, so that its last picture shows the success.

        Args:
            action: `[4]`, gripper velocity and grip; Meta-World clips it to -1..1.
        """
        self._ensure_env()
        if action.shape != (ACTION_DIM,):
            raise ValueError(f"action: expected shape ({ACTION_DIM},), found {action.shape}")
        raw, reward, done, truncated, info = self._env.step(action)
        self._steps += 1
        success = bool(info.get("success", 0))
        info.update({"task": self.task, "done": done, "is_success": success})
        if done or success:
            info["final_info"] = {"task": self.task, "done": bool(done), "is_success": success}
        limit = truncated or self._steps >= self._max_episode_steps
        return self._format_raw_obs(raw), float(reward), done or success, limit, info

    def observe(self) -> Observation:
        """The observation of the present state, with its picture."""
        observation: Observation = {"pixels": self._picture(self.observation_width, self.observation_height)}
        if self.obs_type == "pixels_agent_pos":
            observation["agent_pos"] = self.raw_observation[:4].copy()
        return observation

    def render(self) -> NDArray[np.uint8]:
        """A picture of the present state in the size for videos, `[height, width, 3]`."""
        self._ensure_env()
        return self._picture(self.visualization_width, self.visualization_height)

    def close(self) -> None:
        """Forget the simulation; the renderer stays for the task's other environments, until `close_renderers`."""
        super().close()
        self._env = None

    def _format_raw_obs(self, raw_obs: NDArray[np.float64]) -> Observation:
        self.raw_observation = raw_obs
        return self.observe() if self.render_observations else {"agent_pos": raw_obs[:4].copy()}

    def _picture(self, width: int, height: int) -> NDArray[np.uint8]:
        picture = renderer_of(self.task, self._env.model, width, height).draw(self._env.model, self._env.data, self.camera_name)
        turned = picture[::-1, ::-1] if self.camera_name == "corner2" else picture  # lerobot turns this camera the right way up
        return np.ascontiguousarray(turned)


_benchmark_lock = threading.Lock()


def _benchmark(task: str) -> Any:
    """Meta-World's single-task benchmark, seeded as lerobot does; drawing its 50 goals takes longer than a model's load."""
    with _benchmark_lock:  # it seeds numpy's global generator
        return _cached_benchmark(task)


@functools.cache
def _cached_benchmark(task: str) -> Any:
    benchmark: Any = metaworld.MT1
    return benchmark(task, seed=42)


@EnvConfig.register_subclass("metaworld_fast")
@dataclass
class FastMetaworldConfig(MetaworldConfig):  # type: ignore[misc]
    """lerobot's configuration of these worlds: `task` is a task, a difficulty (`easy`, ...), or several with commas."""

    task: str = "reach-v3"
    episode_length: int = 150
    observation_width: int = 64
    observation_height: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, feature in self.features.items():
            if key in ("top", "pixels/top"):
                feature.shape = (self.observation_height, self.observation_width, 3)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What each environment is made with."""
        size = {"observation_width": self.observation_width, "observation_height": self.observation_height}
        return {**super().gym_kwargs, **size, "episode_length": self.episode_length}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """`{task or difficulty: {index: vector environment of n_envs}}`, as lerobot's factory wants them."""
        worlds: dict[str, dict[int, Any]] = {}
        for group in (name.strip() for name in self.task.split(",")):
            for index, task in enumerate(DIFFICULTY_TO_TASKS.get(group, [group])):
                check_task(task.replace("metaworld-", ""))
                makers: list[Callable[[], gym.Env[Any, Any]]] = [functools.partial(FastMetaworldEnv, task, **self.gym_kwargs)] * n_envs
                vector = _LazyAsyncVectorEnv if use_async_envs and n_envs > 1 else gym.vector.SyncVectorEnv
                worlds.setdefault(group, {})[index] = vector(makers)
        return worlds


def model_file(task: str) -> str:
    """The file of the model of one of Meta-World's own tasks."""
    kind: Any = ALL_V3_ENVIRONMENTS[task]
    return str(kind.model_name.fget(None))  # a property that reads nothing of its instance
