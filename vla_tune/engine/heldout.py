"""The action loss on demonstrations that training left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vla_tune.console import say
from vla_tune.engine.loop import as_floats
from vla_tune.engine.setup import heldout_episodes, make_heldout_loader

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.engine.setup import Start


@torch.no_grad()
def heldout_loss(config: Config, start: Start) -> float | None:
    """Mean of the policy's own loss over the frames of `data.heldout`; None where there are none.

    The noise and the times of the flow are drawn from a fixed seed, so that methods are compared on the same ones.
    """
    if not heldout_episodes(config.data.heldout, start.dataset.meta.total_episodes):
        return None
    start.policy.eval()
    total, frames = 0.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in make_heldout_loader(config, start.dataset):
            count = len(batch["action"])
            total += count * start.policy(start.processors[0](as_floats(batch)))[0].item()
            frames += count
    say(f"held-out action loss: {total / frames:.4f} over {frames} frames")
    return total / frames
