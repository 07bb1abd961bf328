"""Which changes of a VLM its anchor allows, and what takes the others out of gradients and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_tune.console import warn
from vla_tune.errors import UserError
from vla_tune.optim.projections import InputSide, Pairs, projection_of
from vla_tune.policies.inputs import linears

if TYPE_CHECKING:
    from transformers import SmolVLMForConditionalGeneration

    from vla_tune.anchors import Anchor

ROUNDING = 1e-4
"""By so much may a stored share of energy fall short without a word."""


class Protection:
    """Holds the parameters of a VLM where its VQA inputs read them; call it on both sides of the optimizer's step.

    Linear layers change outside the directions U of their inputs, dW U = 0, or outside the pairs of an input and an output
    direction that matter most to the answers, v^T dW u = 0; token embeddings on rows that were not read. What else trains
    (norms, biases, position embeddings, embeddings that are also the head's) is read by every input and stops training here.

    Args:
        anchor: what the layers read, and what the answers feel of them.
        sides: `inputs`, or `both` for the pairs.
        energy: the share of it that the protected directions or pairs carry.
        vlm: the VLM as it was before training: the kinds of its layers and the weights that changes are counted from.
        parameters: all that may train of it by name, its own or those of a copy.

    Raises:
        UserError: the anchor does not go so far, has no gradients, lacks a layer that trains, or is of other weights.

    """

    def __init__(
        self, anchor: Anchor, sides: str, energy: float, vlm: SmolVLMForConditionalGeneration, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        known, source = anchor.subspace, anchor.artifact.path
        _check_stored(anchor, sides, energy)
        modules = linears(vlm)
        table = vlm.get_input_embeddings().weight
        tied = table is vlm.get_output_embeddings().weight  # then every row is read, as the logit of its token
        embedding = next(name for name, start in vlm.named_parameters() if start is table)
        starts = {name: start.detach().to(parameters[name]) for name, start in vlm.named_parameters()}
        grouped: dict[str, list[str]] = {}
        self._rows: list[_Rows] = []
        self._held = 0
        for name, parameter in parameters.items():
            module, _, kind = name.rpartition(".")
            if not parameter.requires_grad:
                continue
            if name == embedding and not tied:
                self._rows.append(_Rows(name, parameter, starts[name], known.tokens))
            elif module in modules and kind == "weight":
                if module not in known.reads:
                    raise UserError(
                        f"the anchor {source} has no directions for {module}, which trains; "
                        "make one for this policy's settings with `vla-tune anchor`"
                    )
                grouped.setdefault(known.reads[module], []).append(name)
            else:
                parameter.requires_grad = False
                self._held += 1
        self._layers = [
            _Layers(names[0], [parameters[n] for n in names], [starts[n] for n in names], projection_of(known, names, sides, energy))
            for names in grouped.values()
        ]
        strays = [n for n, p in parameters.items() if not p.requires_grad and not torch.equal(p, starts[n])]
        strays += [part.name for part in self._parts if part.strays()]
        if strays:
            raise UserError(
                f"the policy's VLM is not what the anchor {source} was taken from, nor has it been trained under its protection: "
                f"{len(strays)} weights have other values, {strays[0]} first; make an anchor for this policy with `vla-tune anchor`"
            )

    @property
    def _parts(self) -> list[_Layers | _Rows]:
        return [*self._layers, *self._rows]

    def __str__(self) -> str:
        free, size, held = (sum(getattr(layers, what) for layers in self._layers) for what in ("free", "size", "bytes"))
        return (
            f"subspace: {free / size:.1%} of the directions that weights can change in are free; "
            f"{held / 1e6:.1f} MB of bases and starting weights; {self._held} norms, biases and position embeddings of the VLM are held"
        )

    @torch.no_grad()
    def project_gradients(self) -> dict[str, tuple[float, float]]:
        """Before the step, so that the optimizer's moments live outside the protected directions.

        Returns:
            The gradient's energy (squared norm) before and after, by the first layer that reads an input.

        """
        for rows in self._rows:
            rows.project_gradients()
        energies = {layers.name: layers.project_gradients() for layers in self._layers}
        figures = torch.stack(list(energies.values())).tolist()  # one wait for the device
        return {name: (before, after) for name, (before, after) in zip(energies, figures, strict=True)}

    @torch.no_grad()
    def project_changes(self) -> None:
        """After the step: takes back what Adam's division by element and weight decay brought in."""
        for part in self._parts:
            part.project_changes()


def _check_stored(anchor: Anchor, sides: str, energy: float) -> None:
    """Stop with a UserError where the anchor holds too few directions, or only those of the inputs."""
    source, stored = anchor.artifact.path, float(anchor.artifact.config["anchor"]["energy"])
    if sides == "both" and not anchor.subspace.outputs:
        raise UserError(
            f"the anchor {source} has no gradients of the answers, which sides=both needs; "
            "make one with anchor.gradients above 0, or set sides=inputs (method.subspace.sides)"
        )
    most, needed = (stored**2, math.ceil(1e6 * math.sqrt(energy)) / 1e6) if sides == "both" else (stored, energy)
    if energy > most:
        raise UserError(
            f"energy={energy}: the anchor {source} holds directions up to an energy of {most:.6g} (sides={sides}); "
            f"make one with anchor.energy={needed:.6g} or more"
        )
    known = dict(anchor.subspace.inputs)
    if sides == "both":
        known |= {f"{name}'s outputs": one for name, one in anchor.subspace.outputs.items()}
    short = sorted((one.share, name) for name, one in known.items() if one.share < needed - ROUNDING)
    if short:
        worst, name = short[0]
        warn(
            f"energy={energy} asks for {needed:.6g} of the energy of each side, but anchor.rank cut off more of {len(short)} of them "
            f"({name} has {worst:.4g}); there, all that is stored is protected"
        )


class _Rows:
    """The embeddings of the tokens that were read, which stay."""

    def __init__(self, name: str, embedding: nn.Parameter, start: Tensor, tokens: Tensor) -> None:
        self.name, self._embedding = name, embedding
        self._seen = (tokens > 0).nonzero().flatten().to(embedding.device)
        self._start = start[self._seen]

    def strays(self) -> bool:
        return not torch.equal(self._embedding[self._seen], self._start)

    def project_gradients(self) -> None:
        if self._embedding.grad is not None:
            self._embedding.grad[self._seen] = 0

    def project_changes(self) -> None:
        self._embedding.data[self._seen] = self._start


class _Layers:
    """The weights of the layers that read one input, with the projection that holds them.

    Everything is computed in float32; weights in bfloat16 are rounded at the end.
    """

    def __init__(self, name: str, parameters: list[nn.Parameter], starts: list[Tensor], projection: InputSide | Pairs) -> None:
        self.name, self._parameters = name, parameters
        self._project = projection.to(parameters[0].device)
        self._start = torch.cat([start.flatten(1) for start in starts])
        self.size = self._start.numel()
        self.free = projection.free * self.size
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*projection.tensors, self._start))

    def strays(self) -> bool:
        """Whether the change since the start has more in the protected directions than rounding (with TF32) leaves there."""
        change = self._change()
        inside = (change - self._project(change)).norm()
        return bool(inside > 0.01 * change.norm() + torch.finfo(self._start.dtype).eps * self._start.norm())

    def project_gradients(self) -> Tensor:
        """G becomes its part in the free directions; its energy before and after, `[2]`."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        whole = torch.cat([g.flatten(1) for g in gradients]).float()
        free = self._project(whole)
        self._scatter(gradients, free)
        return torch.stack([torch.linalg.vector_norm(whole), torch.linalg.vector_norm(free)]).square()

    def project_changes(self) -> None:
        """The same for the change since the start, so that rounding and weight decay cannot add up."""
        self._scatter([p.data for p in self._parameters], self._start.float() + self._project(self._change()))

    def _change(self) -> Tensor:
        return torch.cat([p.detach().flatten(1) for p in self._parameters]).float() - self._start.float()

    def _scatter(self, targets: list[Tensor], rows: Tensor) -> None:
        for target, part in zip(targets, rows.split([len(target) for target in targets]), strict=True):
            target.copy_(part.view_as(target))
