"""Which task a sample belongs to, told from how the frozen model sees it: no task id is given at deployment.

Ours: a Gaussian a task over the frozen model's pooled features. A sample goes to the likeliest task, or to none (the model as it
was) where it lies further out than nearly all of that task's own samples. Every sample is decided alone; `assign_batch`, one
decision for a whole batch of one task as MoE-Adapters' selector makes it (arXiv 2403.11549), is there to be reported beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NONE = -1
"""Of no task."""
SHRINKAGE = 0.1
"""The share of a spherical covariance of the same trace: there are few samples for the many features."""
FOLDS = 4
"""How far out a task's own samples lie is measured on those that its Gaussian was not fitted to."""


class TaskRouter:
    """Gaussians over features `[d]`, one a task.

    inside: the share of a task's own samples that must count as its own.
    """

    def __init__(self, inside: float) -> None:
        self.inside = inside
        self.means: list[Tensor] = []
        self.factors: list[Tensor] = []
        self.radii: list[float] = []

    def add(self, features: Tensor) -> None:
        """The next task, from its training samples' features `[n, d]`."""
        features = features.double()
        parts = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))].chunk(FOLDS)
        outside = [
            _distance(part, *_fit(torch.cat([*parts[:number], *parts[number + 1 :]]))) for number, part in enumerate(parts) if len(parts) > 1
        ]
        mean, factor = _fit(features)
        self.means.append(mean)
        self.factors.append(factor)
        self.radii.append(float(torch.cat(outside).quantile(self.inside)) if outside else float("inf"))

    def assign(self, features: Tensor, among: int | None = None) -> Tensor:
        """The task of each sample `[n, d]` -> `[n]`, among the first `among` (default: all) tasks; `NONE` for what is like none."""
        distances, densities = self._compare(features, among)
        best = densities.argmax(1)
        near = distances.gather(1, best[:, None])[:, 0] <= torch.tensor(self.radii)[best]
        return torch.where(near, best, NONE)

    def assign_batch(self, features: Tensor, among: int | None = None) -> Tensor:
        """One decision for all samples together, `[n]`."""
        distances, densities = self._compare(features, among)
        best = int(densities.sum(0).argmax())
        inside = (distances[:, best] <= self.radii[best]).double().mean() >= 0.5
        return torch.full((len(features),), best if inside else NONE)

    def nearest(self, task: int) -> int:
        """The earlier task whose samples look most like those of this one: whose mean is nearest."""
        return int(torch.stack([(mean - self.means[task]).norm() for mean in self.means[:task]]).argmin())

    @property
    def size(self) -> int:
        """How many numbers it keeps."""
        return sum(mean.numel() + factor.shape[0] * (factor.shape[0] + 1) // 2 for mean, factor in zip(self.means, self.factors, strict=True))

    def _compare(self, features: Tensor, among: int | None) -> tuple[Tensor, Tensor]:
        """Squared Mahalanobis distances and log densities, `[n, tasks]`."""
        fitted = list(zip(self.means, self.factors, strict=True))[:among]
        distances = torch.stack([_distance(features.double(), *one) for one in fitted], dim=1)
        volumes = torch.stack([factor.diagonal().log().sum() for _, factor in fitted])
        return distances, -0.5 * distances - volumes

    def state_dict(self) -> dict[str, Tensor]:
        """Means `[tasks, d]`, Cholesky factors `[tasks, d, d]` and radii `[tasks]`."""
        if not self.means:
            return {}
        return {"means": torch.stack(self.means), "factors": torch.stack(self.factors), "radii": torch.tensor(self.radii).double()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state_dict`."""
        self.means, self.factors = list(state.get("means", ())), list(state.get("factors", ()))
        self.radii = state["radii"].tolist() if state else []


def _fit(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the Cholesky factor of the shrunk covariance, float64."""
    mean = features.mean(0)
    centred = features - mean
    covariance = centred.T @ centred / max(len(features) - 1, 1)
    spread = covariance.diagonal().mean().clamp(min=1e-12)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    return mean, torch.linalg.cholesky(covariance)


def _distance(features: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Squared Mahalanobis distances, `[n]`."""
    return torch.linalg.solve_triangular(factor, (features - mean).T, upper=False).square().sum(0)
