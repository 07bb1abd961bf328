"""What a stream of tasks keeps and loses: the metrics of continual learning.

All read one matrix R, float64 `[tasks, tasks]`, both sides in stream order: R[j, i] is the score on task i, more being
better, after task j has been learnt. Tasks are counted from 0. A cell that was not measured is NaN, and so is every
figure that needs it; cells that a metric has no use for may be anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def transfer(scores: Tensor) -> Tensor:
    """Of each task but the first, the mean of R[j, i] over j < i, `[tasks - 1]`: what learning others left of zero-shot skill.

    'Transfer' of ZSCL (arXiv 2303.06628).
    """
    scores = _square(scores)
    return scores.triu(1).sum(0)[1:] / torch.arange(1, len(scores), device=scores.device)


def average(scores: Tensor) -> Tensor:
    """Of each task the mean over all rows, before and after it was learnt, `[tasks]`: 'Avg.' of ZSCL."""
    return _square(scores).mean(0)


def last(scores: Tensor) -> Tensor:
    """The scores once the whole stream has been learnt, `[tasks]`: 'Last' of ZSCL."""
    return _square(scores)[-1]


def backward_transfer(scores: Tensor) -> Tensor:
    """Of each task but the last, R[-1, i] - R[i, i], `[tasks - 1]`; negative where later tasks did harm.

    GEM (arXiv 1706.08840).
    """
    scores = _square(scores)
    return (scores[-1] - scores.diagonal())[:-1]


def forgetting(scores: Tensor) -> Tensor:
    """Of each task but the last, its best R[j, i] over i <= j < tasks - 1, less R[-1, i], `[tasks - 1]`; negative where it gained.

    Chaudhry et al. (arXiv 1801.10112). The maximum starts where the task has been learnt, so that a pre-trained model's
    zero-shot score is nothing that could be forgotten.
    """
    scores = _square(scores)
    left_out = torch.ones_like(scores, dtype=torch.bool).triu(1)
    left_out[-1] = True
    # The last task's column is -inf and dropped; with its row and column kept so far, one task alone needs no case of its own.
    return (scores.masked_fill(left_out, -math.inf).amax(0) - scores[-1])[:-1]


def summary(scores: Tensor) -> dict[str, float | None]:
    """The mean of each metric over its tasks; None where a cell that it needs was not measured, or where it has no task.

    A stream of one task has no transfer, backward transfer or forgetting.
    """
    metrics = (transfer, average, last, backward_transfer, forgetting)
    # The mean of nothing is NaN too.
    means = {metric.__name__: float(metric(scores).mean()) for metric in metrics}
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


def _square(scores: Tensor) -> Tensor:
    """The matrix in float64.

    Raises:
        ValueError: it is not square, or of no task.

    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"the scores must be a square matrix [tasks, tasks] of at least one task, not {list(scores.shape)}")
    return scores.double()
