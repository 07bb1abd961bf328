"""The two phases of a task as pure rules: what the regulariser is, when the routers have settled, which experts stay.

From the paper (abstract and first page): candidate experts are added, a regulariser keeps the new task's gradients in the old
experts' span softly, routers settle early, routing probabilities tell redundant experts. Ours, for want of its formulas: every
function here. Since the gradient of an expert's factors is proportional to its probability, pressing on the probability of new
experts presses on their gradients: what old ones can express, they get to express.
"""

from __future__ import annotations

import torch
from torch import Tensor


def new_mass(probabilities: list[Tensor], new: int) -> Tensor:
    """The mean over layers and tokens of the probability that goes to new experts: what the regulariser is a multiple of.

    Args:
        probabilities: a layer's, `[tokens, slots]` each: the unchanged layer, new experts, old ones.
        new: how many of the slots are new experts.

    """
    means = torch.cat([layer.mean(0)[1 : 1 + new] for layer in probabilities])
    return means.sum() / len(probabilities)


def agreement(before: list[Tensor], now: list[Tensor]) -> float:
    """The share of a probe's tokens, over all layers, whose most probable slot is the same at two checks; `[tokens]` a layer each."""
    same = sum(int((one == other).sum()) for one, other in zip(before, now, strict=True))
    return same / sum(len(one) for one in now)


def kept_slots(shares: Tensor, threshold: float) -> list[int]:
    """The expert slots (from 1) with at least `threshold` times an equal share; `shares` `[slots]` are mean probabilities."""
    return [slot for slot in range(1, len(shares)) if float(shares[slot]) * len(shares) >= threshold]


def overlap(new: list[Tensor], old: list[Tensor]) -> Tensor:
    """Sum of |A_new A_old^T|^2 over pairs of experts' input directions: O-LoRA's orthogonality (arXiv 2310.14152).

    Args:
        new, old: factors A `[rank, d]`; of one layer.

    """
    return (torch.cat(new) @ torch.cat(old).T).square().sum()
