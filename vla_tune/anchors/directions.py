"""The directions of an anchor: what a linear layer reads, and where the answers feel what it writes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vla_tune.geometry.subspace import leading_pairs, rank_of


@dataclass(frozen=True)
class Directions:
    """Eigenvectors of a second moment: `basis`, float32 `[width, kept]`, the strongest first, column by column in memory.

    values: the eigenvalues, all that were computed. energy: the mean squared norm, their sum.
    """

    basis: Tensor
    values: Tensor
    energy: float

    @property
    def share(self) -> float:
        """Of the energy, what the stored directions carry; a sketch's eigenvalues are too small rather than too large."""
        return float(self.values[: self.basis.shape[1]].double().sum()) / self.energy if self.energy else 1.0

    def to(self, device: torch.device) -> Directions:
        """With the basis on another device."""
        return replace(self, basis=self.basis.to(device))

    def leading(self, energy: float) -> Tensor:
        """Those that carry this share of the energy, or as many as there are."""
        return self.basis[:, : rank_of(self.values, energy, self.energy)]


def protected_pairs(outputs: Directions, inputs: Directions, energy: float) -> Tensor:
    """The mask `[outputs kept, inputs kept]` of `leading_pairs` among the stored directions of a layer's two sides.

    A pair of one that is not stored may be stronger than the last of these; with all directions stored, none is.
    """
    above, below = (side.values[: side.basis.shape[1]] for side in (outputs, inputs))
    return leading_pairs(above, below, energy, outputs.energy * inputs.energy)


@dataclass(frozen=True)
class Subspace:
    """The directions that each linear layer's inputs take on VQA samples, and those in which the answers feel its outputs.

    inputs: by an input's first reader, in the Hugging Face forward.
    outputs: by layer, of the gradients of the answers; empty where the anchor was taken without any.
    reads: linear layer to the first reader of its input.
    tokens: how often each token of the vocabulary was read.
    """

    inputs: dict[str, Directions]
    outputs: dict[str, Directions]
    reads: dict[str, str]
    tokens: Tensor

    def to(self, device: torch.device) -> Subspace:
        """With the directions on another device."""
        inputs, outputs = ({name: one.to(device) for name, one in side.items()} for side in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs)
