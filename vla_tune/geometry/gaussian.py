"""Diagonal Gaussians: streaming moments with an exact merge, and the squared 2-Wasserstein distance between two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6
"""Added to a variance under its root, so that the deviation of a constant has a gradient."""


@dataclass(frozen=True)
class Moments:
    """Count, mean `[d]` and sum of squared deviations `m2` `[d]` of the vectors seen so far, in float64."""

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        """Nothing seen yet."""
        zero = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zero, zero)

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """The moments of the rows of `x`, `[n, d]`."""
        if not len(x):
            return cls.empty(x.shape[1], x.device)
        x = x.detach().double()
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).square().sum(0))

    def update(self, x: Tensor) -> Moments:
        """With the rows of `x`, `[n, d]`, seen too."""
        return self.merge(Moments.of(x))

    def merge(self, other: Moments) -> Moments:
        """The moments of both together: Chan, Golub and LeVeque (1979), exact up to float64 rounding."""
        count = self.count + other.count
        if not count:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        m2 = self.m2 + other.m2 + shift.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def std(self, eps: float = EPS) -> Tensor:
        """The population's standard deviation `[d]`, sqrt(var + eps).

        Raises:
            ValueError: nothing was seen.

        """
        if not self.count:
            raise ValueError("no vectors were seen: there is no standard deviation")
        return (self.m2 / self.count + eps).sqrt()


def gather(totals: list[Moments], states: list[Tensor], mask: Tensor) -> list[Moments]:
    """`totals`, one a block (none yet: empty), with the tokens of `states` `[batch, tokens, d]` that count seen too."""
    seen = [Moments.of(state[mask]) for state in states]
    return seen if not totals else [total.merge(new) for total, new in zip(totals, seen, strict=True)]


def batch_moments(x: Tensor, mask: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(var + eps), `[d]` each, of the tokens that count; differentiable, in float32 or better.

    Args:
        x: `[batch, tokens, d]`.
        mask: `[batch, tokens]`, true where a token counts; what padding holds has no effect, NaN included. Where none counts, both are
            NaN: to tell would wait for the device.

    """
    counted, count = mask[..., None], mask.sum()
    x = x if x.dtype == torch.float64 else x.float()
    mean = torch.where(counted, x, 0).sum((0, 1)) / count
    return mean, (torch.where(counted, x - mean, 0).square().sum((0, 1)) / count + eps).sqrt()


def sample_tokens(mask: Tensor, count: int, seed: int) -> Tensor:
    """The mask with `count` of its true entries left, drawn without replacement; all of them where there are no more."""
    scores = torch.rand(mask.numel(), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(mask.device)
    best = torch.where(mask.reshape(-1), scores, -1).topk(min(count, mask.numel())).indices
    return torch.zeros_like(mask).reshape(-1).scatter(0, best, 1).reshape(mask.shape) & mask


def wasserstein2(mean: Tensor, std: Tensor, mean_a: Tensor, std_a: Tensor, *, whiten: bool = False) -> Tensor:
    """Squared 2-Wasserstein distance of two diagonal Gaussians, ||mean - mean_a||^2 + ||std - std_a||^2, summed over `[..., d]`.

    AEGIS (arXiv 2604.16067) uses this closed form as its penalty of one layer.

    Args:
        whiten: of the Gaussians in units of `std_a`, so that a channel's scale has no part in it.

    """
    shift, spread = mean - mean_a, std - std_a
    if whiten:
        shift, spread = shift / std_a, spread / std_a
    return (shift.square() + spread.square()).sum(-1)


def anchor_distances(
    states: Iterable[Tensor], mask: Tensor, anchor: Iterable[tuple[Tensor, Tensor]], *, whiten: bool = False
) -> list[Tensor]:
    """`wasserstein2` of each block's tokens that count, `[batch, tokens, d]`, to its anchor's mean and deviation."""
    return [
        wasserstein2(*batch_moments(now, mask), mean.to(now.device), std.to(now.device), whiten=whiten)
        for now, (mean, std) in zip(states, anchor, strict=True)
    ]


class BatchSums:
    """Moments of a batch's tokens that come in micro-batches: the sums of each block, which add up exactly."""

    def __init__(self) -> None:
        self._count: Tensor | None = None
        self._sums: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(self, states: Iterable[Tensor], mask: Tensor) -> None:
        """See the tokens of a micro-batch, `[batch, tokens, d]` a block, that count in `mask` `[batch, tokens]`."""
        inside = [torch.where(mask[..., None], one, 0).double() for one in states]
        sums = [(one.sum((0, 1)), one.square().sum((0, 1))) for one in inside]
        if self._count is None:
            self._count, self._sums = mask.sum(), sums
        else:
            self._count = self._count + mask.sum()
            self._sums = [(s + t, q + r) for (s, q), (t, r) in zip(self._sums, sums, strict=True)]

    def distances(
        self, states: Iterable[Tensor], mask: Tensor, anchor: Iterable[tuple[Tensor, Tensor]], *, whiten: bool = False, eps: float = EPS
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each block, the whole batch's `wasserstein2` to the anchor, and this micro-batch's part of what has its gradient.

        The second is linear in the tokens: summed over the micro-batches, it has the gradient that the first would have. With the
        whole batch's mean M and deviation S, it is <dW/dM, sum x / N> + <dW/dS, sum (x - M)^2 / (2 N S)>.
        """
        assert self._count is not None
        whole, parts = [], []
        for now, (total, squares), stay_at in zip(states, self._sums, anchor, strict=True):
            mean = total / self._count
            std = ((squares / self._count - mean.square()).clamp(min=0) + eps).sqrt()
            mean, std = mean.to(now.device, torch.float32), std.to(now.device, torch.float32)
            mean_a, std_a = (one.to(now.device) for one in stay_at)
            scale = std_a.square() if whiten else torch.ones_like(std_a)
            by_mean, by_std = 2 * (mean - mean_a) / scale, 2 * (std - std_a) / scale
            inside = torch.where(mask[..., None], now.float() - mean, 0)
            linear = inside.sum((0, 1)) @ by_mean + (inside.square().sum((0, 1)) / (2 * std)) @ by_std
            whole.append(wasserstein2(mean, std, mean_a, std_a, whiten=whiten))
            parts.append(linear / self._count)
        return whole, parts
