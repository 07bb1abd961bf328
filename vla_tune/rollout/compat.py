"""Episodes exactly as `lerobot-eval` runs them: its order of seeding and construction, its batches, its noise.

There the noise comes from torch's global generator, so an episode depends on which ran before and beside it; our own runs do
not. This is for comparing the two programs, by lerobot's own `rollout`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.errors import UserError
from vla_tune.rollout.episodes import Episode

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import RolloutConfig


def run_as_lerobot_eval(
    episodes: list[Episode],
    config: RolloutConfig,
    env_config: Any,
    load: Callable[[], tuple[PreTrainedPolicy, tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]]],
    on_done: Callable[[Episode], None],
) -> None:
    """Fill in the results of episodes that are dealt evenly over their tasks.

    Args:
        env_config: lerobot's, of the same tasks. load: opens the policy and its processors, which draws random numbers.

    Raises:
        UserError: not as many episodes of each task.

    """
    from lerobot.envs import close_envs, make_env
    from lerobot.scripts.lerobot_eval import rollout
    from lerobot.utils.random_utils import set_seed

    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    if len(episodes) % len(tasks):
        raise UserError(f"rollout.episodes={len(episodes)}: lerobot-eval runs as many of each of the {len(tasks)} tasks")
    set_seed(config.first_seed)
    worlds = make_env(env_config, n_envs=config.parallel, use_async_envs=config.processes)
    policy, (before, after) = load()
    policy.eval()
    around = env_config.get_env_processors()
    try:
        for task, world in ((named(group, number), world) for group, numbered in worlds.items() for number, world in numbered.items()):
            own = [episode for episode in episodes if episode.task == task]
            for first in range(0, len(own), config.parallel):
                seeds = list(range(own[first].seed, own[first].seed + config.parallel))
                with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # where it draws bars of its own
                    ran = rollout(world, policy, *around, before, after, seeds=seeds)
                for row, episode in enumerate(own[first : first + config.parallel]):
                    episode.steps = int(ran["done"][row].int().argmax()) + 1
                    episode.success = bool(ran["success"][row, : episode.steps].any())
                    episode.total_reward = float(ran["reward"][row, : episode.steps].sum())
                    on_done(episode)
            world.close()
    finally:
        close_envs(worlds)


def named(group: str, number: int) -> str:
    """Our name of a task that lerobot puts under this group: a LIBERO suite's by its number, one of Meta-World's by its own."""
    return f"{group}/{number}" if group.startswith("libero") else group
