"""Where a model computes."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> str:
    """Name the device that a configuration's `device` means: `auto` is the GPU where torch finds one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
