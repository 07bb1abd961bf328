"""Where a model computes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from vla_tune.console import say
from vla_tune.errors import UserError, one_line
from vla_tune.trust.packages import trust

if TYPE_CHECKING:
    from vla_tune.config import Config


def resolve_device(name: str) -> str:
    """Name the device that a configuration's `device` means: `auto` is the GPU where torch finds one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Stop where torch cannot use the device."""
    try:
        torch.empty(1, device=device)
    except Exception as error:  # a build without this kind of device raises all kinds
        raise UserError(f"device={device}: torch cannot use it here ({one_line(error)}); use device=cpu") from None


def on_device(config: Config) -> Config:
    """The configuration with the device named that `auto` means here, so that what is written says it; it is told, too.

    From here on, in this process, policies may bring steps of the packages that it trusts.
    """
    trust(config.policy.trust)
    device = resolve_device(config.device)
    if config.device == "auto":
        say(f"device={device}")
    return dataclasses.replace(config, device=device)
