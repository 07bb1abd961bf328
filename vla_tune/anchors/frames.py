"""What the starting policy's VLM looks like on the robot's own frames: the other side of every anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vla_tune.anchors.memory import Portions
from vla_tune.console import progress
from vla_tune.geometry.gaussian import Moments, gather
from vla_tune.vlm.parts import first_norm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vla_tune.anchors.inputs import LinearInputs
    from vla_tune.policies.base import PolicyAdapter


@dataclass(frozen=True)
class Frames:
    """Robot batches of up to `size` frames, preprocessed as the policy's training forward takes them; `count` batches at most."""

    adapter: PolicyAdapter
    batches: Iterable[dict[str, Any]]
    size: int
    count: int


@torch.no_grad()
def frame_moments(frames: Frames, inputs: LinearInputs) -> list[Moments]:
    """Moments of each block's output over the image and instruction tokens of robot batches, in the policy's forward.

    Args:
        frames: in batches that are taken in parts where memory is short.
        inputs: is told which tokens count.

    """
    totals: list[Moments] = []
    what = "anchor, robot frames"
    portions = Portions(frames.size, next(frames.adapter.policy.parameters()).device, what)
    with progress(what, frames.count, "batches") as counter:
        for batch in frames.batches:
            size = max(len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim)

            def look(rows: range, batch: dict[str, Any] = batch, size: int = size) -> None:
                totals[:] = _add_frames(totals, frames.adapter, _part(batch, size, rows), inputs)

            portions.deal(size, look)
            counter.advance()
    return totals


def _add_frames(totals: list[Moments], adapter: PolicyAdapter, batch: dict[str, Any], inputs: LinearInputs) -> list[Moments]:
    with adapter.taps() as taps:
        # The mask is known when the prefix is embedded; the first block's norm is the first to run after that.
        norm = first_norm(adapter.layers()[0])
        told = norm.register_forward_pre_hook(lambda *_: setattr(inputs, "mask", taps.mask))
        try:
            adapter.policy(batch)
        finally:
            told.remove()
    assert taps.mask is not None
    return gather(totals, taps.states, taps.mask)


def _part(batch: dict[str, Any], size: int, rows: range) -> dict[str, Any]:
    """Some samples of a batch; what is not there once a sample stays whole."""
    per_sample = {
        key: value[rows.start : rows.stop]
        for key, value in batch.items()
        if (isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim)) and len(value) == size
    }
    return {**batch, **per_sample}
