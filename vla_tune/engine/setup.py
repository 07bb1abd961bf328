"""Building what a training run needs, from lerobot's parts: policy, processors, data, optimizer, schedule."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from vla_tune.console import say, table, warn
from vla_tune.data.demonstrations import adopt_shapes, check_dataset, dataset_metadata, open_dataset
from vla_tune.data.memory import MemoryDataset, megabytes
from vla_tune.errors import UserError
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.loading import check_device, load_processors, new_policy
from vla_tune.policies.starting import load_start
from vla_tune.vlm.loading import vlm_source

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import Config
    from vla_tune.methods.base import Method
    from vla_tune.vqa.replay import ReplayQuestions


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
    from lerobot.configs import FeatureType
    from lerobot.utils.feature_utils import dataset_to_policy_features

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
        features = dataset_to_policy_features(meta.features)
        outputs = {key: feature for key, feature in features.items() if feature.type is FeatureType.ACTION}
        inputs = {key: feature for key, feature in features.items() if key not in outputs}
        policy = new_policy(adapter_class(config.policy.type), base, {**config.policy.settings, "device": config.device}, (inputs, outputs))
    check_dataset(meta, policy.config, config.data.rename if config.policy.path else {})
    dataset = open_dataset(meta, policy.config)
    return Start(policy.to(config.device), make_processors(config, policy, meta.stats), dataset, base)


def make_processors(
    config: Config, policy: PreTrainedPolicy, stats: dict[str, dict[str, Any]]
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """lerobot's processors of a policy that starts here, scaling by these statistics."""
    return load_processors(policy, config.policy.path, stats=stats, rename=config.data.rename if config.policy.path else {})


def make_loader(config: Config, dataset: LeRobotDataset, step: int) -> DataLoader[dict[str, Any]]:
    """The demonstrations that training does not leave out, positioned as after `step` steps."""
    left_out = set(heldout_episodes(config.data.heldout, dataset.meta.total_episodes))
    return loader_of(config, dataset, [number for number in range(dataset.meta.total_episodes) if number not in left_out], step)


def loader_of(config: Config, dataset: LeRobotDataset, episodes: list[int], step: int) -> DataLoader[dict[str, Any]]:
    """lerobot's sampler and collation over some episodes, positioned as after `step` steps."""
    from lerobot.datasets.sampler import EpisodeAwareSampler, compute_sampler_state
    from lerobot.utils.collate import lerobot_collate_fn

    sampler = EpisodeAwareSampler(
        dataset.meta.episodes["dataset_from_index"],
        dataset.meta.episodes["dataset_to_index"],
        episode_indices_to_use=episodes,
        shuffle=True,
        seed=config.seed,
    )
    sampler.load_state_dict(compute_sampler_state(step, len(sampler), config.train.batch_size, num_processes=1))
    loader: DataLoader[dict[str, Any]] = DataLoader(
        in_memory(dataset, config.data.cache_mb),
        batch_size=config.train.batch_size,
        sampler=sampler,
        collate_fn=lerobot_collate_fn,
        generator=torch.Generator(),  # else every epoch's iterator draws from the global generator, and a resumed run draws once more
    )
    return loader


def make_heldout_loader(config: Config, dataset: LeRobotDataset) -> DataLoader[dict[str, Any]]:
    """Up to `data.heldout_frames` frames of the episodes that training leaves out, in order."""
    frames = episode_frames(dataset, heldout_episodes(config.data.heldout, dataset.meta.total_episodes))
    every = -(-len(frames) // config.data.heldout_frames) or 1
    return frames_loader(in_memory(dataset, config.data.cache_mb), frames[::every], config.train.batch_size)


def frames_loader(dataset: LeRobotDataset | MemoryDataset, frames: list[int], batch_size: int) -> DataLoader[dict[str, Any]]:
    """These frames once and in order, collated as lerobot does."""
    from lerobot.utils.collate import lerobot_collate_fn

    return DataLoader(dataset, batch_size=batch_size, sampler=frames, collate_fn=lerobot_collate_fn)


def episode_frames(dataset: LeRobotDataset, episodes: list[int], every: int = 1) -> list[int]:
    """The frames of these episodes: the first of each, and each `every` after it."""
    table = dataset.meta.episodes
    spans = [(int(table["dataset_from_index"][one]), int(table["dataset_to_index"][one])) for one in episodes]
    return [frame for first, end in spans for frame in range(first, end, every)]


def heldout_episodes(share: float, episodes: int) -> list[int]:
    """Which episodes training leaves out: one in every 1 / share, spread evenly, so over the tasks too."""
    count = int(share * episodes)
    return [(2 * number + 1) * episodes // (2 * count) for number in range(count)]


@functools.lru_cache(maxsize=1)
def in_memory(dataset: LeRobotDataset, cache_mb: int) -> LeRobotDataset | MemoryDataset:
    """The dataset in memory where it fits, decoded once."""
    need = megabytes(dataset)
    if need is not None and need <= cache_mb:
        return MemoryDataset(dataset)
    reason = "it has videos" if need is None else f"decoded it needs {need:.0f} MB, more than data.cache_mb={cache_mb}"
    say(f"reading frames from the dataset as they are needed: {reason}")
    return dataset


def make_memory(config: Config, base_vlm: str) -> ReplayQuestions | None:
    """The questions of the anchor split, for a method that goes on reading them; None for the others."""
    from vla_tune.methods import method_class
    from vla_tune.vlm.loading import load_vlm
    from vla_tune.vqa.dataset import vqa_questions
    from vla_tune.vqa.replay import ReplayQuestions

    if not method_class(config.method.name).needs_memory:
        return None
    return ReplayQuestions(vqa_questions(config.vqa.manifest, "anchor"), load_vlm(base_vlm)[1], config.seed)


def make_optimizer(config: Config, method: Method) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR, float]:
    """The policy's presets, for what the method trains."""
    return preset_optimizer(config, method.policy, method.parameter_groups(config.train.lr))


def preset_optimizer(
    config: Config, policy: PreTrainedPolicy, groups: list[dict[str, Any]]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR, float]:
    """lerobot's optimizer and schedule presets of a policy with our steps, warm-up and rate; and its clipping norm."""
    preset = policy.config.get_optimizer_preset()
    schedule = policy.config.get_scheduler_preset()
    floor = schedule.decay_lr / schedule.peak_lr
    schedule = dataclasses.replace(
        schedule,
        peak_lr=config.train.lr,
        decay_lr=floor * config.train.lr,
        num_warmup_steps=config.train.warmup_steps,
        num_decay_steps=config.train.steps,
    )
    optimizer = dataclasses.replace(preset, lr=config.train.lr).build(groups)
    return optimizer, schedule.build(optimizer, config.train.steps), preset.grad_clip_norm


def show_groups(method: Method, lr: float) -> None:
    """The table of what trains, group by group, each with its learning rate."""
    rates = {id(p): group.get("lr", lr) for group in method.parameter_groups(lr) for p in group["params"]}
    extras = {f"{name} (beside the policy)": dict(module.named_parameters()) for name, module in method.extras.named_children()}
    rows = []
    for name, parameters in {**method.adapter.groups(), **extras}.items():
        trained = [p for p in parameters.values() if p.requires_grad]
        size, count = sum(p.numel() for p in parameters.values()), sum(p.numel() for p in trained)
        state = "frozen" if not trained else "trains" if count == size else "in part"
        rate = f"{rates[id(trained[0])]:g}" if trained else "-"
        rows.append([name, str(len(parameters)), f"{size:,}", f"{count:,}", rate, state])
    table("what trains", ["group", "tensors", "parameters", "trained", "lr", ""], rows)
