"""Removing from one gradient what conflicts with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conflict:
    """How two gradients stood to each other before the projection.

    cosine: of the angle between task and anchor gradient; 0 where one of them is zero.
    projected: whether they conflicted (a negative inner product), so that the task gradient was changed.
    energy_shed: the share of the task gradient's squared norm that was removed, cosine^2 where projected.
    """

    cosine: float
    projected: bool
    energy_shed: float


@torch.no_grad()
def remove_conflict(task: Sequence[Tensor], anchor: Sequence[Tensor]) -> Conflict:
    """One Gram-Schmidt step, in place on `task`, over tensors read as one concatenated vector (AEGIS, Eq. 12 to 14).

    Where <task, anchor> < 0, task becomes task - <task, anchor> / <anchor, anchor> * anchor, and is orthogonal to
    anchor; else not a bit of it changes. The paper adds an epsilon to the denominator, which leaves a residual
    conflict and switches the rule off for small anchor gradients; here there is none, and a zero anchor is skipped.
    Inner products are summed in float64, so the result does not depend on the anchor's scale.

    Args:
        task, anchor: tensors of the same shapes, pair by pair.

    """
    dot = _inner(task, anchor)
    task_square, anchor_square = _inner(task, task), _inner(anchor, anchor)
    if task_square == 0.0 or anchor_square == 0.0:
        return Conflict(0.0, projected=False, energy_shed=0.0)
    cosine = dot / (task_square**0.5 * anchor_square**0.5)
    if dot >= 0.0:
        return Conflict(cosine, projected=False, energy_shed=0.0)
    for g_task, g_anchor in zip(task, anchor, strict=True):
        # The coefficient may overflow the gradients' own precision where the anchor is tiny; the product does not.
        g_task.copy_(g_task.double().sub_(g_anchor.double(), alpha=dot / anchor_square))
    return Conflict(cosine, projected=True, energy_shed=cosine**2)


@torch.no_grad()
def remove_conflict_each(task: Sequence[Tensor], anchor: Sequence[Tensor]) -> Conflict:
    """`remove_conflict` in each pair of tensors on its own; the figures are those of all of them together."""
    dot, task_square, anchor_square = _inner(task, anchor), _inner(task, task), _inner(anchor, anchor)
    squares = [_inner([t], [t]) for t in task]
    parts = [remove_conflict([t], [a]) for t, a in zip(task, anchor, strict=True)]
    if task_square == 0.0 or anchor_square == 0.0:
        return Conflict(0.0, projected=False, energy_shed=0.0)
    return Conflict(
        dot / (task_square**0.5 * anchor_square**0.5),
        projected=any(part.projected for part in parts),
        energy_shed=sum(part.energy_shed * square for part, square in zip(parts, squares, strict=True)) / task_square,
    )


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The inner product of two concatenated vectors, in float64."""
    products = [torch.dot(a.reshape(-1).double(), b.reshape(-1).double()) for a, b in zip(left, right, strict=True)]
    return float(torch.stack(products).sum()) if products else 0.0
