"""Weights as bytes: a digest of a model, and which parts of a VLM fine-tuning has moved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_tune.vlm.parts import vlm_group_of


@dataclass(frozen=True)
class MovedGroup:
    """One part of the VLM, base against tuned.

    moved: how many of its `tensors` differ.
    relative: L2 norm of the change over the L2 norm of the base.
    largest: largest absolute change of one weight.
    """

    group: str
    tensors: int
    parameters: int
    moved: int
    relative: float
    largest: float


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """`sha256:...` over names, dtypes, shapes and bytes of a state dict, independent of its order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def moved_groups(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> list[MovedGroup]:
    """How far each group of the tuned VLM's tensors is from the base VLM's, in the order of the tuned state dict.

    The base is rounded to the tuned tensor's type first: a policy in bfloat16 that equals the rounded base is unmoved.

    Args:
        base: the base VLM's state dict, which has every name of `tuned` with the same shape, or with more rows.
        tuned: the policy's VLM's state dict; it may lack the layers that the policy cut off.

    """
    members: dict[str, list[str]] = {}
    for name in tuned:
        members.setdefault(vlm_group_of(name), []).append(name)
    return [_compare(group, [(base[name], tuned[name]) for name in names]) for group, names in members.items()]


def _compare(group: str, pairs: list[tuple[Tensor, Tensor]]) -> MovedGroup:
    moved, change, norm, largest = 0, 0.0, 0.0, 0.0
    for base, tuned in pairs:
        before = base[: len(tuned)].detach().to(tuned.device, tuned.dtype)
        norm += before.double().square().sum().item()
        if not torch.equal(before, tuned):
            moved += 1
            difference = tuned.detach().double() - before.double()
            change += difference.square().sum().item()
            largest = max(largest, difference.abs().max().item())
    relative = (change / norm) ** 0.5 if norm else float(change > 0)
    return MovedGroup(group, len(pairs), sum(tuned.numel() for _, tuned in pairs), moved, relative, largest)
