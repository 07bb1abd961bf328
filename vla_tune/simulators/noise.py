"""The noise that a policy's call starts from, in a simulator and on demonstrations."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def call_noise(task: str, seed: int, call: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that follows from its arguments alone, on any machine."""
    digest = hashlib.sha256(f"{task}/{seed}/{call}".encode()).digest()
    return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))
