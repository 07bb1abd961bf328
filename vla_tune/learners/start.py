"""Where training on demonstrations starts: the policy, its processors and the dataset, from lerobot's parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import say, warn
from vla_tune.data.batches import chosen_episodes
from vla_tune.data.demonstrations import adopt_shapes, check_dataset, dataset_metadata, open_dataset
from vla_tune.data.features import policy_features
from vla_tune.data.statistics import scalable
from vla_tune.errors import UserError
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.devices import check_device
from vla_tune.policies.loading import load_processors, new_policy
from vla_tune.policies.starting import load_start
from vla_tune.vlm.loading import vlm_source

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import Config


@dataclass
class Start:
    """Where training starts.

    base_vlm: Hub id or folder of the VLM whose skill counts.
    """

    policy: PreTrainedPolicy
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]
    dataset: LeRobotDataset
    base_vlm: str


def make_start(config: Config) -> Start:
    """The policy, its processors and its demonstrations; the same seed makes the same policy.

    Raises:
        UserError: something that the configuration names is missing, or the dataset and the policy do not fit.

    """
    check_device(config.device)
    meta = dataset_metadata(config.data)
    torch.manual_seed(config.seed)
    if config.policy.path:
        if config.policy.settings:
            say("policy.settings are put over those saved with policy.path")
        policy = load_start(config.policy, config.device)
        adopt_shapes(meta, policy.config, config.data.rename)
        base = vlm_source(config.policy.base_vlm) if config.policy.base_vlm else adapt(policy).vlm_name(policy.config)
    else:
        if not config.policy.base_vlm:
            raise UserError("policy: give policy.path (a policy to start from) or policy.base_vlm (a VLM to put a new expert on)")
        if config.data.rename:
            warn("data.rename is left out: a new policy takes the dataset's names")
        base = vlm_source(config.policy.base_vlm)
        settings = {**config.policy.settings, "device": config.device}
        policy = new_policy(adapter_class(config.policy.type), base, settings, policy_features(meta.features))
    check_dataset(meta, policy.config, config.data.rename if config.policy.path else {})
    chosen = config.data.episodes and chosen_episodes(config.data.episodes, meta.total_episodes)
    dataset = open_dataset(meta, policy.config, chosen)
    return Start(policy.to(config.device), make_processors(config, policy, meta.stats), dataset, base)


def make_processors(
    config: Config, policy: PreTrainedPolicy, stats: dict[str, dict[str, Any]]
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """lerobot's processors of a policy that starts here, scaling by these statistics."""
    return load_processors(policy, config.policy.path, stats=scalable(stats), rename=config.data.rename if config.policy.path else {})
