"""Episodes exactly as `lerobot-eval` runs them: its order of seeding and construction, its batches, its noise.

There the noise comes from torch's global generator, so an episode depends on which ran before and beside it; our own runs do
not. This is for comparing the two programs, by lerobot's own `rollout`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vla_tune.errors import UserError
from vla_tune.simulators.episodes import Episode

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import RolloutConfig
    from vla_tune.simulators.base import Simulator


def run_as_lerobot_eval(
    episodes: list[Episode],
    simulator: Simulator,
    config: RolloutConfig,
    image_size: int,
    load: Callable[[], tuple[PreTrainedPolicy, tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]]],
    on_done: Callable[[Episode], None],
) -> None:
    """Fill in the results of episodes that are dealt evenly over their tasks.

    Args:
        image_size: edge of the pictures. load: opens the policy, in evaluation mode, and its processors; draws random numbers.

    Raises:
        UserError: not as many episodes of each task.

    """
    from lerobot.envs import close_envs, make_env
    from lerobot.scripts.lerobot_eval import rollout
    from lerobot.utils.random_utils import set_seed

    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    if len(episodes) % len(tasks):
        raise UserError(f"rollout.episodes={len(episodes)}: lerobot-eval runs as many of each of the {len(tasks)} tasks")
    env_config = simulator.lerobot_config(tasks, image_size=image_size, step_limit=config.step_limit)
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True  # as there
    set_seed(config.first_seed)
    worlds = make_env(env_config, n_envs=config.parallel, use_async_envs=config.processes)
    policy, (before, after) = load()
    around = env_config.get_env_processors()
    try:
        for task, numbered in worlds.items():
            world = numbered[0]
            own = [episode for episode in episodes if episode.task == task]
            for first in range(0, len(own), config.parallel):
                seeds = list(range(own[first].seed, own[first].seed + config.parallel))
                amp = torch.autocast(torch.device(policy.config.device).type, enabled=policy.config.use_amp)
                with torch.no_grad(), amp, contextlib.redirect_stderr(io.StringIO()):  # where it draws bars of its own
                    ran = rollout(world, policy, *around, before, after, seeds=seeds)
                for row, episode in enumerate(own[first : first + config.parallel]):
                    episode.steps = int(ran["done"][row].int().argmax()) + 1
                    episode.success = bool(ran["success"][row, : episode.steps].any())
                    episode.total_reward = float(ran["reward"][row, : episode.steps].sum())
                    on_done(episode)
            world.close()
    finally:
        close_envs(worlds)
