"""Subspaces of a linear layer's changes: streaming second moments, their leading eigenvectors, projection.

y = W x gives the same outputs on every x in the span of U after any change of W with dW U = 0. Where also the gradients at y
are known, with leading directions V, the pairs (v, u) that matter are fewer: v^T dW u = 0 on those alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOISE = 1e-10
"""Eigenvalues below this share of the largest have eigenvectors that a Gram matrix in float64 cannot tell to float32's accuracy."""


@dataclass
class SecondMoment:
    """The uncentred second moment of the vectors seen so far.

    count: how many. total: sum of x x^T, float64 `[d, d]`.
    """

    count: int
    total: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> SecondMoment:
        """Nothing seen yet."""
        return cls(0, torch.zeros(width, width, dtype=torch.float64, device=device))

    def update(self, x: Tensor) -> None:
        """Add the rows of `x`, `[n, d]`. A batch is summed in its own precision, batches in float64."""
        self.count += len(x)
        self.total += x.T @ x

    def merge(self, other: SecondMoment) -> SecondMoment:
        """Of both together, exact up to float64 rounding."""
        return SecondMoment(self.count + other.count, self.total + other.total)

    @property
    def energy(self) -> float:
        """The mean squared norm."""
        return float(self.total.trace()) / max(self.count, 1)

    def principal(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues `[d]` of total / count, largest first, and eigenvectors `[d, d]`, a column each; float64."""
        return _eigh(self.total / max(self.count, 1))


@dataclass
class SketchedMoment:
    """As `SecondMoment`, of bounded memory: Frequent Directions (Liberty, 2013) with `rank` rows.

    Shrunk by the eigenvectors of its Gram matrix, which costs a fraction of a singular value decomposition. The sketch
    B `[rows, d]`, at most 2 rank rows, has 0 <= X^T X - B^T B <= ||X||_F^2 / rank in every direction, so a kept eigenvalue
    is never too large, and too small by no more than that.
    """

    rank: int
    count: int
    trace: Tensor
    rows: Tensor

    @classmethod
    def empty(cls, width: int, rank: int, device: torch.device | str = "cpu") -> SketchedMoment:
        """Nothing seen yet."""
        return cls(rank, 0, torch.zeros((), dtype=torch.float64, device=device), torch.zeros(0, width, device=device))

    def update(self, x: Tensor) -> None:
        """Add the rows of `x`, `[n, d]`."""
        self.count += len(x)
        self.trace = self.trace + x.float().square().sum(dtype=torch.float64)
        while len(x):
            room = 2 * self.rank - len(self.rows)
            self.rows = torch.cat([self.rows, x[:room].float()])
            x = x[room:]
            if len(self.rows) == 2 * self.rank:
                self._shrink()

    def merge(self, other: SketchedMoment) -> SketchedMoment:
        """Of both together; the bounds add up."""
        both = SketchedMoment(self.rank, self.count + other.count, self.trace + other.trace, torch.cat([self.rows, other.rows]))
        if len(both.rows) >= 2 * both.rank:
            both._shrink()
        return both

    @property
    def energy(self) -> float:
        """The mean squared norm, exact."""
        return float(self.trace) / max(self.count, 1)

    def principal(self) -> tuple[Tensor, Tensor]:
        """The leading `rank` eigenvalues and eigenvectors `[d, k]`, or those that stand out from rounding; float64."""
        rows = self.rows.double()
        if len(rows) >= rows.shape[1]:
            values, vectors = _eigh(rows.T @ rows)
        else:
            values, left = _eigh(rows @ rows.T)
            sound = values > NOISE * values[:1]  # of what is smaller, the rows say no direction
            values = values[sound]
            vectors = rows.T @ (left[:, sound] / values.sqrt())
        return values[: self.rank] / max(self.count, 1), vectors[:, : self.rank]

    def _shrink(self) -> None:
        """Rotate onto the right singular vectors and take the (rank + 1)th squared singular value from all.

        By the eigenvectors W of B B^T: with D = sqrt(1 - least / values), at most 1, the new rows are D W^T B. However W is rounded, they
        add up to no more than B, as long as it is orthogonal.
        """
        values, left = _eigh(self.rows @ self.rows.T)
        least = values[self.rank] if len(values) > self.rank else values.new_zeros(())
        values, left = values[: self.rank], left[:, : self.rank]
        kept = (1 - least / values.clamp(min=torch.finfo(values.dtype).tiny)).clamp(min=0).sqrt()
        self.rows = (left * kept).T @ self.rows


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first and none below 0, and eigenvectors, a column each."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def add_rows(moments: dict[str, SecondMoment | SketchedMoment], name: str, rows: Tensor, *, exact_width: int, rank: int) -> None:
    """Add rows `[n, d]` to the moment of that name, begun where missing: exact up to `exact_width`, a sketch of `rank` rows beyond."""
    if name not in moments:
        width, device = rows.shape[1], rows.device
        moments[name] = SecondMoment.empty(width, device) if width <= exact_width else SketchedMoment.empty(width, rank, device)
    moments[name].update(rows)


def rank_of(values: Tensor, energy: float, total: float) -> int:
    """How many leading eigenvalues `[d]` it takes to carry the share `energy` of `total`.

    All of them where they do not; for an energy of 1, those that stand out from float32's rounding.
    """
    if energy >= 1:
        return int((values > torch.finfo(torch.float32).eps * values.max()).sum()) if len(values) else 0
    return min(int((values.cumsum(0) < energy * total).sum()) + 1, len(values))


def complement(basis: Tensor) -> Tensor:
    """An orthonormal basis F `[d, d - k]` of what is orthogonal to the columns of U `[d, k]`."""
    return torch.linalg.qr(basis.double(), mode="complete")[0][:, basis.shape[1] :].to(basis.dtype)


def project_out(gradient: Tensor, basis: Tensor, *, out: Tensor | None = None) -> Tensor:
    """What is left of each row of a weight gradient outside the span of an orthonormal basis: G - (G U) U^T.

    Args:
        gradient: G, `[rows, d]`.
        basis: U, `[d, k]`.
        out: where to write it; may be the gradient itself.

    """
    return torch.addmm(gradient, gradient @ basis, basis.T, alpha=-1, out=out)


def project_on(gradient: Tensor, free: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The same given the complement's basis F `[d, d - k]`, (G F) F^T: cheaper where fewer directions are free than kept."""
    return torch.mm(gradient @ free, free.T, out=out)


def leading_pairs(outputs: Tensor, inputs: Tensor, energy: float, total: float) -> Tensor:
    """The leading eigenspace of a Kronecker product, B ⊗ A: which of its eigenvectors v ⊗ u carry the share `energy` of its trace.

    Args:
        outputs, inputs: eigenvalues of B `[j]` and of A `[i]`, largest first.
        energy: in 0..1. total: trace B * trace A; more than the products' sum where eigenvalues were left out.

    Returns:
        A mask `[j, i]` of the fewest pairs with that energy (ties come along), all of them where there are too few.

    """
    products = outputs.double()[:, None] * inputs.double()
    ordered = products.flatten().sort(descending=True).values
    least = ordered[rank_of(ordered, energy, total) - 1]
    mask: Tensor = products >= least
    return mask


def project_pairs(gradient: Tensor, outputs: Tensor, inputs: Tensor, pairs: Tensor, *, out: Tensor | None = None) -> Tensor:
    """What is left of a weight gradient outside the protected pairs: G - V ((V^T G U) * pairs) U^T, in the cheapest order of products.

    Args:
        gradient: G, `[rows, d]`.
        outputs, inputs: V `[rows, j]` and U `[d, i]`, orthonormal.
        pairs: `[j, i]`, ones (or True) where protected.
        out: where to write it; may be the gradient itself.

    """
    (rows, width), (j, i) = gradient.shape, pairs.shape
    first = left_first(j, rows, width, i)
    inside = pairs * ((outputs.T @ gradient) @ inputs if first else outputs.T @ (gradient @ inputs))
    if left_first(rows, j, i, width):
        return torch.addmm(gradient, outputs @ inside, inputs.T, alpha=-1, out=out)
    return torch.addmm(gradient, outputs, inside @ inputs.T, alpha=-1, out=out)


def left_first(a: int, b: int, c: int, d: int) -> bool:
    """Whether (A B) C takes no more multiplications than A (B C), for A `[a, b]`, B `[b, c]` and C `[c, d]`."""
    return a * b * c + a * c * d <= b * c * d + a * b * d


def share_inside(moment: Tensor, basis: Tensor) -> float:
    """The share of a second moment's energy `[d, d]` that lies in the span of an orthonormal basis `[d, k]`."""
    basis = basis.to(moment.dtype)
    total = float(moment.trace())
    return float((basis * (moment @ basis)).sum()) / total if total else 0.0
