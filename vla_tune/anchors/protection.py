"""Which changes of a VLM its anchor allows, and what takes the others out of gradients and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_tune.anchors.projections import InputSide, Pairs, projections
from vla_tune.console import warn
from vla_tune.errors import UserError
from vla_tune.vlm.parts import linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vla_tune.anchors.artifact import Anchor

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

    def __init__(self, anchor: Anchor, sides: str, energy: float, vlm: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        source = anchor.artifact.path
        known = anchor.subspace.to(next(iter(parameters.values())).device)
        check_stored(anchor, sides, energy)
        modules = linears(vlm)
        table = vlm.get_input_embeddings().weight
        tied = table is vlm.get_output_embeddings().weight  # then every row is read, as the logit of its token
        embedding = next(name for name, start in vlm.named_parameters() if start is table)
        starts = {name: start.detach().to(parameters[name]) for name, start in vlm.named_parameters()}
        layers: list[str] = []
        self._rows: list[_Rows] = []
        self._held = 0
        for name, parameter in parameters.items():
            module, _, kind = name.rpartition(".")
            if not parameter.requires_grad:
                continue
            if name == embedding and not tied:
                self._rows.append(_Rows(name, parameter, starts[name], known.tokens))
            elif name != embedding and module in modules and kind == "weight":
                if module not in known.reads:
                    raise UserError(
                        f"the anchor {source} has no directions for {module}, which trains; "
                        "make one for this policy's settings with `vla-tune anchor`"
                    )
                layers.append(module)
            else:
                parameter.requires_grad = False
                self._held += 1
        self._weights = [
            _Weight(name := f"{layer}.weight", parameters[name], starts[name].clone(), projection)
            for layer, projection in projections(known, layers, sides, energy).items()
        ]
        strays = [n for n, p in parameters.items() if not p.requires_grad and not torch.equal(p, starts[n])]
        strays += [part.name for part in self._parts if part.strays()]
        if strays:
            raise UserError(
                f"the policy's VLM is not what the anchor {source} was taken from, nor has it been trained under its protection: "
                f"{len(strays)} weights have other values, {strays[0]} first; make an anchor for this policy with `vla-tune anchor`"
            )

    @property
    def _parts(self) -> list[_Weight | _Rows]:
        return [*self._weights, *self._rows]

    def __str__(self) -> str:
        size = sum(weight.size for weight in self._weights)
        free = sum(weight.free for weight in self._weights) / size
        held = {part.data_ptr(): part.nbytes() for part in (t.untyped_storage() for weight in self._weights for t in weight.tensors)}
        return (
            f"subspace: {free:.1%} of the directions that weights can change in are free; "
            f"{sum(held.values()) / 1e6:.1f} MB of bases and starting weights; "
            f"{self._held} norms, biases and position embeddings of the VLM are held"
        )

    @torch.no_grad()
    def project_gradients(self) -> dict[str, Tensor]:
        """Before the step, so that the optimizer's moments live outside the protected directions. Waits for nothing on the device.

        Returns:
            The gradient's energy (squared norm) before and after, `[2]`, by the name of the weight.

        """
        for rows in self._rows:
            rows.project_gradients()
        return {weight.name: weight.project_gradients() for weight in self._weights if weight.has_gradient}

    @torch.no_grad()
    def project_changes(self) -> None:
        """After the step: takes back what Adam's division by element and weight decay brought in."""
        for part in self._parts:
            part.project_changes()


def check_stored(anchor: Anchor, sides: str, energy: float) -> None:
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
            self._embedding.grad.index_fill_(0, self._seen, 0)

    def project_changes(self) -> None:
        self._embedding.data.index_copy_(0, self._seen, self._start.to(self._embedding.dtype))  # a master's, too


class _Weight:
    """The weight of a linear layer or of the patch embedding, with the projection that holds it.

    Everything is computed in float32; weights in bfloat16 are rounded at the end.
    """

    def __init__(self, name: str, parameter: nn.Parameter, start: Tensor, projection: InputSide | Pairs) -> None:
        self.name, self._parameter, self._start, self._project = name, parameter, start, projection
        self.size = parameter.numel()
        self.free = projection.free * self.size

    @property
    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [self._start, *self._project.tensors]

    @property
    def has_gradient(self) -> bool:
        return self._parameter.grad is not None

    def strays(self) -> bool:
        """Whether the change since the start has more in the protected directions than rounding (with TF32) leaves there."""
        change = self._change()
        inside = (change - self._project(change)).norm()
        return bool(inside > 0.01 * change.norm() + torch.finfo(self._start.dtype).eps * self._start.norm())

    def project_gradients(self) -> Tensor:
        """G becomes its part in the free directions; its energy before and after, `[2]`."""
        assert self._parameter.grad is not None
        rows = self._parameter.grad.flatten(1).float()  # the gradient itself where it is float32 and lies row by row
        before = torch.linalg.vector_norm(rows)
        free = self._project(rows, out=rows)
        self._parameter.grad.copy_(free.view_as(self._parameter))
        return torch.stack([before, torch.linalg.vector_norm(free)]).square()

    def project_changes(self) -> None:
        """The same for the change since the start, so that rounding and weight decay cannot add up."""
        change = self._change()
        self._parameter.data.copy_(self._start.float() + self._project(change, out=change).view_as(self._start))

    def _change(self) -> Tensor:
        """The rows `[n, d]` of the change since the start."""
        return (self._parameter.detach().float() - self._start.float()).flatten(1)
