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
        mask: `[batch, tokens]`, true where a token counts; what padding holds has no effect, NaN included.

    Raises:
        ValueError: no token counts.

    """
    tokens = x[mask]
    if not len(tokens):
        raise ValueError("the mask leaves no token: there are no moments")
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    mean = tokens.mean(0)
    return mean, ((tokens - mean).square().mean(0) + eps).sqrt()


def sample_tokens(mask: Tensor, count: int, seed: int) -> Tensor:
    """The mask with `count` of its true entries left, drawn without replacement; all of them where there are no more."""
    places = mask.reshape(-1).nonzero().squeeze(1)
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count]
    kept = torch.zeros_like(mask).reshape(-1)
    kept[places[drawn.to(places.device)]] = True
    return kept.reshape(mask.shape)


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
