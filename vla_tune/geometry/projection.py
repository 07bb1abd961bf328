"""Removing from one gradient what conflicts with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conflict:
    """How two gradients stood to each other before the projection, as scalars on their device.

    cosine: of the angle between task and anchor gradient, float64; 0 where one of them is zero.
    projected: whether they conflicted (a negative inner product), so that the task gradient was changed.
    energy_shed: the share of the task gradient's squared norm that was removed, cosine^2 where projected.
    """

    cosine: Tensor
    projected: Tensor
    energy_shed: Tensor


@torch.no_grad()
def remove_conflict(task: Sequence[Tensor], anchor: Sequence[Tensor]) -> Conflict:
    """One Gram-Schmidt step, in place on `task`, over tensors read as one concatenated vector (AEGIS, Eq. 12 to 14).

    Where <task, anchor> < 0, task becomes task - <task, anchor> / <anchor, anchor> * anchor, and is orthogonal to
    anchor; else not a bit of it changes. The paper adds an epsilon to the denominator, which leaves a residual
    conflict and switches the rule off for small anchor gradients; here there is none, and a zero anchor is skipped.
    Inner products are summed in float64, so the result does not depend on the anchor's scale. Nothing waits for the device.

    Args:
        task, anchor: tensors of the same shapes, pair by pair.

    """
    dot, task_square, anchor_square = _inner(task, anchor), _inner(task, task), _inner(anchor, anchor)
    some = (task_square > 0) & (anchor_square > 0)
    cosine = torch.where(some, dot / (task_square.sqrt() * anchor_square.sqrt()), 0)
    projected = some & (dot < 0)
    share = dot / anchor_square
    for g_task, g_anchor in zip(task, anchor, strict=True):
        # The coefficient may overflow the gradients' own precision where the anchor is tiny; the product does not.
        g_task.copy_(torch.where(projected, g_task.double() - g_anchor.double() * share, g_task.double()))
    return Conflict(cosine, projected, torch.where(projected, cosine.square(), 0))


@torch.no_grad()
def remove_conflict_each(task: Sequence[Tensor], anchor: Sequence[Tensor]) -> Conflict:
    """`remove_conflict` in each pair of tensors on its own; the figures are those of all of them together."""
    dot, task_square, anchor_square = _inner(task, anchor), _inner(task, task), _inner(anchor, anchor)
    squares = torch.stack([_inner([t], [t]) for t in task])
    parts = [remove_conflict([t], [a]) for t, a in zip(task, anchor, strict=True)]
    some = (task_square > 0) & (anchor_square > 0)
    shed = torch.stack([part.energy_shed for part in parts]) @ squares
    return Conflict(
        torch.where(some, dot / (task_square.sqrt() * anchor_square.sqrt()), 0),
        torch.stack([part.projected for part in parts]).any(),
        torch.where(some, shed / task_square, 0),
    )


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two concatenated vectors, in float64."""
    products = [torch.dot(a.reshape(-1).double(), b.reshape(-1).double()) for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum()
