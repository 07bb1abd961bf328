"""What the starting policy's VLM looks like on the robot's own frames: the other side of every anchor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vla_tune.console import progress
from vla_tune.geometry.gaussian import Moments, gather

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vla_tune.anchors.inputs import LinearInputs
    from vla_tune.policies.base import PolicyAdapter


@torch.no_grad()
def frame_moments(adapter: PolicyAdapter, batches: Iterable[dict[str, Any]], count: int, inputs: LinearInputs) -> list[Moments]:
    """Moments of each block's output over the image and instruction tokens of robot batches, in the policy's forward.

    Args:
        batches: preprocessed, as the policy's training forward takes them.
        count: how many there are at most.
        inputs: is told which tokens count.

    """
    totals: list[Moments] = []
    with progress("anchor, robot frames", count, "batches") as counter:
        for batch in batches:
            with adapter.taps() as taps:
                # The mask is known when the prefix is embedded; the first block's norm is the first to run after that.
                norm = adapter.layers()[0].get_submodule("input_layernorm")
                told = norm.register_forward_pre_hook(lambda *_, taps=taps: setattr(inputs, "mask", taps.mask))
                try:
                    adapter.policy(batch)
                finally:
                    told.remove()
            assert taps.mask is not None
            totals = gather(totals, taps.states, taps.mask)
            counter.advance()
    return totals
