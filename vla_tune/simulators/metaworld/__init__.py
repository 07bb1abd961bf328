"""Meta-World's tasks, and ours in its scene; Meta-World itself is imported when a world is made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vla_tune.errors import UserError
from vla_tune.simulators.base import Simulator
from vla_tune.simulators.metaworld.tasks import FIRST_SEED, GROUPS, INSTRUCTIONS, MAX_STEPS, TOUCH_TASKS, check_task

if TYPE_CHECKING:
    from vla_tune.simulators.metaworld.world import FastMetaworldEnv

VIDEO_SIZE = 256


class Metaworld(Simulator):
    """Meta-World's tasks, and ours in its scene (`touch-red`, ...). Groups are lerobot's difficulties (`easy`, ...) and `touch`."""

    title = "Meta-World"
    module = "metaworld"
    packages = ("lerobot", "metaworld", "mujoco", "torch")
    cameras = ("observation.image",)
    state = action = 4

    def names(self) -> list[str]:
        return [*GROUPS, *INSTRUCTIONS]

    def tasks(self, name: str) -> list[str]:
        if name not in GROUPS:
            check_task(name)
        return list(GROUPS.get(name, [name]))

    def group(self, task: str) -> str | None:
        return next((name for name, tasks in GROUPS.items() if task in tasks), None)

    def instruction(self, task: str) -> str:
        return INSTRUCTIONS[task]

    def scene(self, task: str) -> str:
        """The file of Meta-World's model; our touch tasks are one scene."""
        from vla_tune.simulators.metaworld.world import model_file

        return "touch" if task in TOUCH_TASKS else model_file(task)

    def alternatives(self, task: str) -> list[str]:
        return list(TOUCH_TASKS) if task in TOUCH_TASKS else []

    def followed(self, task: str, instruction: str, touched: str | None) -> bool | None:
        if task not in TOUCH_TASKS:
            return None
        return touched is not None and TOUCH_TASKS[f"touch-{touched}"] == instruction

    def step_limit(self, task: str) -> int:  # noqa: ARG002 - all tasks have the same
        return MAX_STEPS

    def prepare(self) -> None:
        import vla_tune.simulators.metaworld.world  # noqa: F401 - says what is missing

    def maker(self, task: str, *, image_size: int, step_limit: int) -> Callable[[], FastMetaworldEnv]:
        return functools.partial(_make_world, task, image_size, step_limit)

    def processor(self) -> Any:
        from vla_tune.simulators.metaworld.world import FastMetaworldConfig

        return FastMetaworldConfig().get_env_processors()[0]

    def check_seeds(self, first: int, last: int) -> None:
        if last >= FIRST_SEED:
            raise UserError(f"rollout.first_seed={first}: seeds up to {last}; those from {FIRST_SEED} on are demonstrations'")

    def lerobot_config(self, tasks: list[str], *, image_size: int, step_limit: int | None) -> Any:
        from vla_tune.simulators.metaworld.world import FastMetaworldConfig

        size = {"observation_width": image_size, "observation_height": image_size}
        return FastMetaworldConfig(task=",".join(tasks), episode_length=step_limit or MAX_STEPS, **size)

    def register(self) -> None:
        self.prepare()  # the module registers `metaworld_fast`

    def close(self) -> None:
        from vla_tune.simulators.metaworld.drawing import close_renderers

        close_renderers()


SIMULATOR = Metaworld()


def _make_world(task: str, image_size: int, step_limit: int) -> FastMetaworldEnv:
    from vla_tune.simulators.metaworld.world import FastMetaworldEnv

    return FastMetaworldEnv(
        task,
        obs_type="pixels_agent_pos",
        observation_width=image_size,
        observation_height=image_size,
        visualization_width=VIDEO_SIZE,
        visualization_height=VIDEO_SIZE,
        episode_length=step_limit,
    )
