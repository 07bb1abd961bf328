"""Noise and times of a flow-matching loss, drawn by seed, step and sample instead of from the global generator.

They are drawn for the whole batch at once, and a micro-batch or a process takes its samples' rows. So how a batch is split
changes no number; the whole batch's size does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def flow_draws(model: Any, seed: int, step: int, samples: Sequence[int], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Noise `[len(samples), chunk, dim]` and times `[len(samples)]` of a step, on the CPU, from lerobot's own distributions.

    Args:
        model: lerobot's flow model, whose `sample_noise` and `sample_time` are asked.
        samples: which rows of the whole batch are wanted.
        shape: `(whole batch, chunk, dim)`.

    """
    rows = torch.as_tensor(list(samples), dtype=torch.long)
    with torch.random.fork_rng(devices=[]):  # they take no generator; torch.manual_seed would seed the GPU's too
        torch.default_generator.manual_seed(_mixed(seed, step))
        noise, time = model.sample_noise(shape, "cpu"), model.sample_time(shape[0], "cpu")
    return noise[rows], time[rows]


@contextmanager
def drawing(model: Any, noise: Tensor, time: Tensor) -> Iterator[None]:
    """The flow model's forward passes in here use this noise `[batch, chunk, dim]` and these times `[batch]`."""

    def noise_of(shape: Sequence[int], _device: Any) -> Tensor:
        assert tuple(shape) == noise.shape, f"noise of shape {tuple(noise.shape)} for actions of shape {tuple(shape)}"
        return noise

    def time_of(count: int, _device: Any) -> Tensor:
        assert (count,) == time.shape, f"{len(time)} times for {count} samples"
        return time

    ours: dict[str, Callable[..., Tensor]] = {"sample_noise": noise_of, "sample_time": time_of}
    for name, draw in ours.items():
        setattr(model, name, draw)
    try:
        yield
    finally:
        for name in ours:
            delattr(model, name)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _mixed(seed: int, step: int) -> int:
    """32 bits, which is what torch's generator on the CPU takes of its seed."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
