"""The two projections that can hold a linear layer's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vla_tune.anchors.directions import protected_pairs
from vla_tune.geometry.subspace import complement, project_on, project_out, project_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from vla_tune.anchors.directions import Directions, Subspace


@dataclass(frozen=True)
class InputSide:
    """Takes out of a weight's rows what lies in U, or keeps what lies in its complement: `basis` `[d, k]` is the smaller of the two."""

    basis: Tensor
    spare: bool

    @classmethod
    def of(cls, inputs: Directions, energy: float) -> InputSide:
        """U is what carries that share of the inputs' energy."""
        protected = inputs.leading(energy)
        spare = 2 * protected.shape[1] > len(protected)
        return cls(complement(protected) if spare else protected, spare)

    def __call__(self, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
        """What is left of rows `[n, d]`."""
        return (project_on if self.spare else project_out)(rows, self.basis, out=out)

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
    """Takes the protected pairs of an input and an output direction out of a weight.

    strips: V `[n, j]`, U `[d, i]` and the mask `[j, i]`, for inputs from the strongest to the weakest. The weaker an input is, the
    fewer outputs it is protected with, so two strips waste less than one rectangle.
    """

    strips: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, outputs: Directions, inputs: Directions, energy: float) -> Pairs:
        """The pairs that carry the share `energy` of the product."""
        mask = protected_pairs(outputs, inputs, energy)
        heights = mask.sum(0)  # of each input's column, falling: products fall along both axes
        width = int((heights > 0).sum())
        cuts = torch.arange(width)
        cut = int((cuts * heights[0] + (width - cuts) * heights[:width]).argmin())  # where the two cover least
        spans = [(0, cut), (cut, width)] if cut else [(0, width)]
        v, u = outputs.basis, inputs.basis
        return cls([(v[:, : heights[a]], u[:, a:b], mask[: heights[a], a:b].to(u)) for a, b in spans])

    def __call__(self, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
        """What is left of rows `[n, d]`."""
        for strip in self.strips:
            rows = project_pairs(rows, *strip, out=out)
        return rows

    @property
    def free(self) -> float:
        """The share of the pairs that are left."""
        v, u, _ = self.strips[0]
        return 1 - sum(float(mask.sum()) for *_, mask in self.strips) / (len(v) * len(u))

    @property
    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [tensor for strip in self.strips for tensor in strip]


def projections(known: Subspace, layers: Iterable[str], sides: str, energy: float) -> dict[str, InputSide | Pairs]:
    """What holds each of these layers; those that read one input share its directions."""
    readers = {layer: known.reads[layer] for layer in layers}
    if sides == "both":
        return {layer: Pairs.of(known.outputs[layer], known.inputs[first], energy) for layer, first in readers.items()}
    inputs = {first: InputSide.of(known.inputs[first], energy) for first in set(readers.values())}
    return {layer: inputs[first] for layer, first in readers.items()}
