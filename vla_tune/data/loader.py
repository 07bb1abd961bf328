"""The demonstrations as batches: lerobot's sampler and collation, positioned as after so many steps."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from vla_tune.console import say
from vla_tune.data.memory import MemoryDataset, megabytes

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from vla_tune.config import Config


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


def as_floats(batch: dict[str, Any]) -> dict[str, Any]:
    """Pictures that come as uint8 (decoded videos do) in 0..1, as lerobot's training turns them."""
    pictures = {key: value.float() / 255 for key, value in batch.items() if isinstance(value, torch.Tensor) and value.dtype == torch.uint8}
    return {**batch, **pictures}
