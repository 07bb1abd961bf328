"""The two projections that can hold the weights of layers which read one input; the rows of these lie one below the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vla_tune.anchors import protected_pairs
from vla_tune.geometry.subspace import complement, project_on, project_out, project_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from vla_tune.anchors import Directions, Subspace


@dataclass(frozen=True)
class InputSide:
    """Takes out of rows `[out, d]` what lies in U, or keeps what lies in its complement: `basis` is the smaller of the two."""

    basis: Tensor
    spare: bool

    @classmethod
    def of(cls, protected: Tensor) -> InputSide:
        """From U, `[d, k]`."""
        spare = 2 * protected.shape[1] > len(protected)
        return cls(complement(protected) if spare else protected.contiguous(), spare)

    def to(self, device: torch.device) -> InputSide:
        """On another device."""
        return replace(self, basis=self.basis.to(device))

    def __call__(self, rows: Tensor) -> Tensor:
        """What is left of them."""
        return project_on(rows, self.basis) if self.spare else project_out(rows, self.basis)

    @property
    def free(self) -> float:
        """The share of the directions that are left."""
        share = self.basis.shape[1] / len(self.basis)
        return share if self.spare else 1 - share

    @property
    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [self.basis]


@dataclass(frozen=True)
class Pairs:
    """Takes the protected pairs of an input and an output direction out of the rows.

    inputs: U, `[d, i]`. outputs: V, `[out, j]`, and the mask `[j, i]` of each layer.
    """

    inputs: Tensor
    outputs: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, inputs: Directions, outputs: list[Directions], energy: float) -> Pairs:
        """The pairs that carry the share `energy` in each layer, without the directions that are in none."""
        masks = [protected_pairs(one, inputs, energy) for one in outputs]
        columns = max(int(mask.any(0).sum()) for mask in masks)  # the leading ones: products fall along both axes
        counts = [int(mask.any(1).sum()) for mask in masks]
        parts = [(one.basis[:, :j].contiguous(), mask[:j, :columns].float()) for one, mask, j in zip(outputs, masks, counts, strict=True)]
        return cls(inputs.basis[:, :columns].contiguous(), parts)

    def to(self, device: torch.device) -> Pairs:
        """On another device."""
        return Pairs(self.inputs.to(device), [(basis.to(device), mask.to(device)) for basis, mask in self.outputs])

    def __call__(self, rows: Tensor) -> Tensor:
        """What is left of them."""
        parts = rows.split([len(basis) for basis, _ in self.outputs])
        return torch.cat([project_pairs(part, basis, self.inputs, mask) for part, (basis, mask) in zip(parts, self.outputs, strict=True)])

    @property
    def free(self) -> float:
        """The share of the pairs that are left."""
        protected = sum(float(mask.sum()) for _, mask in self.outputs)
        return 1 - protected / (len(self.inputs) * sum(len(basis) for basis, _ in self.outputs))

    @property
    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [self.inputs, *(tensor for part in self.outputs for tensor in part)]


def projection_of(known: Subspace, names: list[str], sides: str, energy: float) -> InputSide | Pairs:
    """What the layers with these weights, all readers of one input, are held by."""
    layers = [name.removesuffix(".weight") for name in names]
    inputs = known.inputs[known.reads[layers[0]]]
    if sides == "inputs":
        return InputSide.of(inputs.leading(energy))
    return Pairs.of(inputs, [known.outputs[layer] for layer in layers], energy)
