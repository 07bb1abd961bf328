"""Plain training: one policy on one dataset of demonstrations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.data.batches import (
    as_floats,
    chosen_episodes,
    episode_frames,
    heldout_episodes,
    image_transforms,
    opened,
    ordered_batches,
    to_device,
    training_batches,
)
from vla_tune.learners.policy import PolicyLearner
from vla_tune.learners.start import make_start
from vla_tune.policies.devices import on_device
from vla_tune.policies.loading import grafted_vlm, save_policy
from vla_tune.vlm.loading import save_vlm

if TYPE_CHECKING:
    from torch import Tensor

    from vla_tune.config import Config
    from vla_tune.data.frames import Frames

REMEMBERED = 2**31
"""Steps from here on number the draws of the flow for samples that are seen again."""


class Demonstrations(PolicyLearner):
    """A policy and the demonstrations that it learns from, as one task.

    Raises:
        UserError: something that the configuration names is missing, or the dataset and the policy do not fit.

    """

    def __init__(self, config: Config) -> None:
        config = on_device(config)
        self.start = make_start(config)
        super().__init__(self.start.policy)
        self.config, self.tasks, self.base = config, [config.name], self.start.base_vlm
        self.chosen = chosen_episodes(config.data.episodes, self.start.dataset.meta.total_episodes)
        self.heldout = heldout_episodes(config.data.heldout, self.chosen)
        self.compute_as_configured()

    @property
    def frames(self) -> Frames:
        """What batches are read from; decoded into memory when it is first asked for, where it fits."""
        return opened(self.start.dataset, self.config.data.cache_mb)

    # Batches.

    def open_data(self) -> None:
        _ = self.frames

    def batches(self, task: int, step: int) -> Iterator[dict[str, Any]]:
        return self.read(self.frames_of([one for one in self.chosen if one not in self.heldout]), task, step)

    def frames_of(self, episodes: Sequence[int], every: int = 1) -> list[int]:
        """The frames of some episodes: the first of each, and each `every` after it."""
        return episode_frames(self.start.dataset, episodes, every)

    def read(self, wanted: Sequence[int], task: int, step: int, workers: int | None = None) -> Iterator[dict[str, Any]]:
        """Training batches of these frames without end, from batch `step` on, as the policy's forward pass takes them."""
        config = self.config
        batches = training_batches(
            self.frames,
            wanted,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=step,
            task=task,
            workers=config.data.workers if workers is None else workers,
            device=config.device,
            transforms=image_transforms({"enable": config.data.image_transforms}),
            reference=config.train.reference,
        )
        with closing(batches):  # type: ignore[type-var]
            for number, batch in zip(itertools.count(step), batches, strict=False):
                yield self.drawn(self.processed(batch), task * config.train.steps + number)

    def processed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of the dataset on the device, as the policy's forward pass takes it."""
        processed: dict[str, Any] = self.start.processors[0](as_floats(to_device(batch, self.config.device)))
        return processed

    def drawn(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """The batch with the noise and the times of its step; as it is where lerobot is to draw them (`train.reference`)."""
        return batch if self.config.train.reference else self.with_draws(batch, self.config.seed, step)

    # The forward pass.

    def loss(self, batch: dict[str, Any]) -> Tensor:
        self.model.train()
        return super().loss(batch)

    @torch.no_grad()
    def heldout_loss(self) -> float | None:
        """Mean of the policy's own loss over the frames of `data.heldout`; None where there are none.

        The noise and the times of the flow are drawn from a fixed seed, so that methods are compared on the same ones.
        """
        if not self.heldout:
            return None
        self.model.eval()
        frames = self.frames_of(self.heldout)
        frames = frames[:: -(-len(frames) // self.config.data.heldout_frames)]
        total = torch.zeros((), dtype=torch.float64, device=self.config.device)
        for number, batch in enumerate(ordered_batches(self.frames, frames, self.config.train.batch_size)):
            one = self.with_draws(self.processed(batch), 0, number)
            total += self.size(one) * PolicyLearner.loss(self, one)
        return total.item() / len(frames)

    def save(self, folder: Path, final: Path) -> None:
        """A stock lerobot policy in `policy/`, and its VLM as a stock Hugging Face checkpoint in `vlm/`.

        The policy names its VLM by Hub id only where lerobot would then build it in the types that were trained.
        """
        vlm, processor = grafted_vlm(self.model, self.base)
        save_vlm(vlm, processor, folder / "vlm")
        by_id = not Path(self.base).is_dir() and self.adapter.keeps_types(self.base)
        save_policy(self.model, self.start.processors, folder / "policy", self.base if by_id else str(final.resolve() / "vlm"))
