"""Subspace anchors: the VLM may change only where its VQA features have nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.console import say
from vla_tune.errors import UserError
from vla_tune.geometry.subspace import complement, project_on, project_out, rank_of
from vla_tune.methods.base import Method
from vla_tune.policies.inputs import linears
from vla_tune.policies.smolvla import VLM_PREFIX


class Subspace(Method):
    """Every linear layer of the VLM keeps its outputs on the directions U that its VQA inputs take: dW U = 0.

    After gradient projection memory (arXiv 2103.09762) and Adam-NSCL (2103.07113). The gradient loses its part in U, so
    that the optimizer's moments live outside it; the optimizer's step loses what Adam's division by element and weight
    decay bring back. Token embeddings read on VQA are rows that stay; norms and biases, which every input reads, stay
    too. Then no VQA output changes but for the energy that U leaves out: the layers' inputs stay, so their outputs do.
    """

    name: ClassVar[str] = "subspace"
    needs_anchor: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        assert self.anchor is not None
        known, energy = self.anchor.subspace, self.settings.subspace.energy
        stored = float(self.anchor.artifact.config["anchor"]["energy"])
        if energy > stored:
            raise UserError(
                f"method.subspace.energy={energy}: the anchor {self.anchor.artifact.path} holds directions up to an energy of {stored}; "
                f"make one with anchor.energy={energy} or more"
            )
        modules = linears(self.adapter.vlm)
        embedding = self.adapter.vlm.get_input_embeddings().weight
        grouped: dict[str, list[nn.Parameter]] = {}
        self._rows: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        held = 0
        for name, parameter in self.trained("vlm").items():
            module = name.removeprefix(VLM_PREFIX).rpartition(".")[0]
            if parameter is embedding:
                seen = (known.tokens > 0).nonzero().flatten().to(parameter.device)
                self._rows.append((parameter, seen, parameter.detach()[seen].clone()))
            elif module in modules and name.endswith(".weight"):
                if module not in known.reads:
                    raise UserError(
                        f"the anchor {self.anchor.artifact.path} has no directions for {module}, which trains; "
                        "make one for this policy's settings with `vla-tune anchor`"
                    )
                grouped.setdefault(known.reads[module], []).append(parameter)
            else:
                parameter.requires_grad = False
                held += 1
        self._layers = [_Layers(parameters, *self._side(first, energy)) for first, parameters in grouped.items()]
        free, size = sum(layers.free for layers in self._layers), sum(layers.bytes for layers in self._layers)
        say(
            f"subspace: {free / sum(layers.width for layers in self._layers):.0%} of the directions are free; "
            f"{size / 1e6:.1f} MB of bases and starting weights; {held} norms, biases and position embeddings of the VLM are held"
        )

    def _side(self, first: str, energy: float) -> tuple[Tensor, bool]:
        """The smaller of U and its complement, and whether it is the complement."""
        assert self.anchor is not None
        known = self.anchor.subspace
        basis = known.bases[first][:, : rank_of(known.values[first], energy, known.energy[first])]
        spare = 2 * basis.shape[1] > len(basis)
        return complement(basis) if spare else basis.contiguous(), spare

    def backward(self, batch: dict[str, Any], backward: Callable[..., None] = Tensor.backward) -> Tensor:
        loss = super().backward(batch, backward)
        if self.settings.subspace.project in ("gradient", "both"):
            for layers in self._layers:
                layers.project_gradients()
            for embedding, rows, _ in self._rows:
                if embedding.grad is not None:
                    embedding.grad[rows] = 0
        return loss

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        if self.settings.subspace.project in ("update", "both"):
            for layers in self._layers:
                layers.project_changes()
            for embedding, rows, start in self._rows:
                embedding.data[rows] = start


class _Layers:
    """The weights of the layers that read one input, with the basis of what they must keep or may change."""

    def __init__(self, parameters: list[nn.Parameter], basis: Tensor, spare: bool) -> None:
        self._parameters = parameters
        self._basis = basis.to(parameters[0].device, parameters[0].dtype)
        self._project = project_on if spare else project_out
        self._start = torch.cat([p.detach().flatten(1) for p in parameters])
        self.width = len(basis)
        self.free = basis.shape[1] if spare else self.width - basis.shape[1]
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in (self._basis, self._start))

    def project_gradients(self) -> None:
        """G becomes its part in the free directions."""
        trained = [p for p in self._parameters if p.grad is not None]
        if trained:
            self._scatter([p.grad for p in trained], self._project(torch.cat([p.grad.flatten(1) for p in trained]), self._basis))

    @torch.no_grad()
    def project_changes(self) -> None:
        """The same for the change since the start, so that rounding and weight decay cannot add up."""
        change = torch.cat([p.detach().flatten(1) for p in self._parameters]) - self._start
        self._scatter([p.data for p in self._parameters], self._start + self._project(change, self._basis))

    def _scatter(self, targets: list[Tensor], rows: Tensor) -> None:
        for target, part in zip(targets, rows.split([len(target) for target in targets]), strict=True):
            target.copy_(part.view_as(target))
