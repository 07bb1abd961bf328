"""Items per second of our loader against lerobot's own on one dataset, with the training step replaced by a sleep.

    python benchmarks/loading.py ROOT [--cache-mb 0] [--workers 0 2]

ROOT is the folder of a LeRobotDataset. Both read the same frames in the same order and take turns in one process.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.sampler import EpisodeAwareSampler
from lerobot.utils.utils import cycle
from torch.utils.data import DataLoader

from vla_tune.data.batches import as_floats, episode_frames, opened, to_device, training_batches

CHUNK = 50
"""Actions that are read with each frame, as SmolVLA does."""


@dataclass
class Rates:
    """Items per second, round by round."""

    lerobot: list[float]
    ours: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over lerobot's, round by round."""
        return [one / other for one, other in zip(self.ours, self.lerobot, strict=True)]


def open_root(root: Path) -> LeRobotDataset:
    """A dataset as lerobot's training opens it, with an action chunk; its video decoder is lerobot's default here."""
    meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    window = {"action": [number / meta.fps for number in range(CHUNK)]}
    return LeRobotDataset(meta.repo_id, root=root, delta_timestamps=window, return_uint8=True)


def lerobot_batches(dataset: LeRobotDataset, batch_size: int, workers: int) -> Iterator[dict[str, Any]]:
    """What lerobot's training reads: its sampler, torch's collation, its defaults for prefetching."""
    bounds = dataset.meta.episodes
    sampler = EpisodeAwareSampler(bounds["dataset_from_index"], bounds["dataset_to_index"], shuffle=True, seed=0)
    ahead = {"prefetch_factor": 4, "persistent_workers": True} if workers else {}
    for batch in cycle(DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, **ahead)):
        yield {key: value.float() / 255.0 if getattr(value, "dtype", None) is torch.uint8 else value for key, value in batch.items()}


def our_batches(dataset: LeRobotDataset, batch_size: int, workers: int, cache_mb: int) -> Iterator[dict[str, Any]]:
    """What our training reads."""
    frames = episode_frames(dataset, range(dataset.meta.total_episodes))
    source = opened(dataset, cache_mb)
    for batch in training_batches(source, frames, batch_size=batch_size, seed=0, workers=workers):
        yield as_floats(to_device(batch, "cpu"))


def rate(batches: Iterator[dict[str, Any]], count: int, step_s: float) -> float:
    """Items per second over `count` batches, each followed by a step of `step_s`; what workers start with is left out."""
    items, warm = 0, 4
    for _ in itertools.islice(batches, warm):
        time.sleep(step_s)
    began = time.perf_counter()
    for batch in itertools.islice(batches, count):
        items += len(batch["index"])
        time.sleep(step_s)
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    return items / seconds


def measure(
    dataset: LeRobotDataset, *, workers: int, cache_mb: int = 0, batch_size: int = 8, count: int = 16, rounds: int = 5, step_s: float = 0.02
) -> Rates:
    """Both loaders in turns; with `cache_mb=0` nothing is decoded beforehand."""
    rates = Rates([], [])
    for _ in range(rounds):
        rates.lerobot.append(rate(lerobot_batches(dataset, batch_size, workers), count, step_s))
        rates.ours.append(rate(our_batches(dataset, batch_size, workers, cache_mb), count, step_s))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--cache-mb", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    asked = parser.parse_args()
    dataset = open_root(asked.root)
    for workers in asked.workers:
        rates = measure(dataset, workers=workers, cache_mb=asked.cache_mb)
        each = f"lerobot {statistics.median(rates.lerobot):.1f}, ours {statistics.median(rates.ours):.1f} items a second"
        spread = f"{statistics.median(rates.ratios):.2f} times as many ({min(rates.ratios):.2f} to {max(rates.ratios):.2f})"
        print(f"{workers} workers: {each}; {spread}", flush=True)


if __name__ == "__main__":
    main()
