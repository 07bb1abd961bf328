"""Plain training: one policy on one dataset of demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.data.loader import as_floats, heldout_episodes, make_heldout_loader, make_loader
from vla_tune.learners.policy import PolicyLearner
from vla_tune.learners.start import make_start
from vla_tune.policies.devices import on_device
from vla_tune.policies.loading import grafted_vlm, save_policy
from vla_tune.vlm.loading import save_vlm

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from vla_tune.config import Config


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

    def loss(self, batch: dict[str, Any]) -> Tensor:
        self.model.train()
        return super().loss(batch)

    def batches(self, task: int, step: int) -> Iterator[dict[str, Any]]:
        return self.cycled(make_loader(self.config, self.start.dataset, step))

    def cycled(self, loader: DataLoader[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches of a loader without end, as the policy's forward pass takes them."""
        from lerobot.utils.utils import cycle

        for batch in cycle(loader):
            yield self.processed(batch)

    def processed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of the dataset as the policy's forward pass takes it."""
        processed: dict[str, Any] = self.start.processors[0](as_floats(batch))
        return processed

    @torch.no_grad()
    def heldout_loss(self) -> float | None:
        """Mean of the policy's own loss over the frames of `data.heldout`; None where there are none.

        The noise and the times of the flow are drawn from a fixed seed, so that methods are compared on the same ones.
        """
        if not heldout_episodes(self.config.data.heldout, self.start.dataset.meta.total_episodes):
            return None
        self.model.eval()
        total, frames = 0.0, 0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for batch in make_heldout_loader(self.config, self.start.dataset):
                count = len(batch["action"])
                total += count * PolicyLearner.loss(self, self.processed(batch)).item()
                frames += count
        return total / frames

    def save(self, folder: Path, final: Path) -> None:
        """A stock lerobot policy in `policy/`, and its VLM as a stock Hugging Face checkpoint in `vlm/`.

        The policy names its VLM by Hub id only where lerobot would then build it in the types that were trained.
        """
        vlm, processor = grafted_vlm(self.model, self.base)
        save_vlm(vlm, processor, folder / "vlm")
        by_id = not Path(self.base).is_dir() and self.adapter.keeps_types(self.base)
        save_policy(self.model, self.start.processors, folder / "policy", self.base if by_id else str(final.resolve() / "vlm"))
