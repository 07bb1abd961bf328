"""What a policy's call is given, in a world and without one: its noise, and which instruction."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

GIVEN = ("right", "swapped", "empty")
"""The instructions of the language probe: the task's own, another's, none."""


def call_noise(task: str, seed: int, call: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that follows from its arguments alone, on any machine."""
    digest = hashlib.sha256(f"{task}/{seed}/{call}".encode()).digest()
    return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))
