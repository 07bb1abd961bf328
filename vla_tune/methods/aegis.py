"""AEGIS (arXiv 2604.16067), from what its abstract and digests say; docs/methods.md lists the choices that are ours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_tune.console import say
from vla_tune.errors import UserError
from vla_tune.geometry.gaussian import BatchSums, anchor_distances, sample_tokens
from vla_tune.geometry.projection import remove_conflict, remove_conflict_each
from vla_tune.methods.base import WHOLE, Gradients, Method, Parameters, Term, filled
from vla_tune.vlm.parts import Taps

_PULL = "pull."
"""What the names of the penalty's kept gradient start with in a checkpoint."""


class Aegis(Method):
    """A static Gaussian anchor per layer; the task gradient loses, layer by layer, what would raise the penalty.

    The penalty is the squared Wasserstein-2 distance of this batch's residual stream to the anchor, summed over the
    blocks. Its gradient is never added: it only says which direction of each block's task gradient must go. Only
    decoder blocks are projected; embeddings, connector and expert follow the task. `AegisConfig` holds the variants.
    """

    name: ClassVar[str] = "aegis"
    needs_anchor: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        self.options = self.settings.aegis
        self._statistics = self._chosen_statistics()
        self._pull: Gradients = {}  # the penalty's gradient
        groups = self.adapter.groups()
        self._layers: dict[int, Parameters] = {}
        frozen = []
        for layer in range(len(self.adapter.layers())):
            trained = {name: p for name, p in groups[f"vlm.layers.{layer}"].items() if p.requires_grad}
            if trained:
                self._layers[layer] = trained
            else:
                frozen.append(str(layer))
        self._blocks = {name: p for layer in self._layers.values() for name, p in layer.items()}
        if frozen:
            say(f"aegis: layer {', '.join(frozen)} of the VLM is frozen by lerobot; it has no task gradient and is not projected")

    def terms(self, batch: dict[str, Any]) -> dict[str, Term]:
        with self.adapter.taps() as taps:
            task = super().terms(batch)
        fresh = self.steps % self.options.every == 0
        with torch.set_grad_enabled(fresh):
            penalty = self._penalty(taps)
        if not fresh:
            return task
        mean = self.part == WHOLE
        if self.options.local:  # a block's own parameters reach its output through the block alone: autograd goes no further down for them
            own = self._layers.items()
            return {**task, **{f"anchor.{layer}": Term(penalty[layer], into=ps, apart=True, mean=mean) for layer, ps in own}}
        return {**task, "anchor": Term(torch.stack(penalty).sum(), into=self._blocks, apart=True, mean=mean)}

    def survey(self, batch: dict[str, Any]) -> dict[str, Tensor | int]:
        """The penalty is a statistic of the whole batch: the prefix is passed once more, to gather it."""
        if self.options.samples:
            raise UserError(
                "train.accumulate: method.aegis.samples draws tokens of a whole batch, and micro-batches do not hold it; set it to 0"
            )
        if self.part.index == 0:
            self._sums = BatchSums()
        taps = self.adapter.batch_prefix(batch)
        self._sums.add(taps.states, taps.counted(self.options.tokens))
        return super().survey(batch)

    def combine(self, gradients: dict[str, Gradients]) -> None:
        """Project the task gradient, or keep the penalty's for `update`. Drift is the penalty / width."""
        task = filled(self._blocks)
        self._pull = {name: g for part in gradients.values() for name, g in part.items()} or self._pull
        self.diagnostics = {} if self.options.project == "update" else self._project(task)
        self.diagnostics["drift"] = [w2.double() / self.adapter.width for w2 in self._drift]

    def before_update(self) -> None:
        if self.options.project == "update":
            self._before = {name: p.detach().clone() for name, p in self._blocks.items()}

    @torch.no_grad()
    def after_update(self) -> bool:
        """Where updates are projected, the optimizer's change loses what raises the penalty to first order."""
        if self.options.project == "update":
            before = self._before
            descent = {name: before[name] - p for name, p in self._blocks.items()}
            self.diagnostics |= self._project(descent)
            for name, p in self._blocks.items():
                p.add_(before[name] - p - descent[name])  # adds exact zeros where nothing was projected
            self._before = {}
        return False

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), **{f"{_PULL}{name}": g for name, g in self._pull.items()}}

    def load_state_dict(self, state: dict[str, Tensor], note: str = "{}") -> None:
        kept = {name.removeprefix(_PULL): g for name, g in state.items() if name.startswith(_PULL)}
        self._pull = {name: g.to(self._blocks[name].device) for name, g in kept.items()}
        super().load_state_dict(state, note)

    def _chosen_statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and deviation to stay at, block by block."""
        anchor, options = self.anchor, self.options
        assert anchor is not None
        if options.anchor == "vqa":
            stock = options.path == "stock"
            means, stds = (anchor.stock_mean, anchor.stock_std) if stock else (anchor.mean, anchor.std)
            return list(zip(means, stds, strict=True))
        if options.path == "stock":
            raise UserError("method.aegis.path=stock: robot frames are read in the policy's path alone; leave it at policy")
        if anchor.robot_mean is None or anchor.robot_std is None:
            raise UserError(
                f"method.aegis.anchor=robot: the anchor {anchor.artifact.path} holds no statistics of robot frames; "
                "make it with anchor.frames above 0"
            )
        return list(zip(anchor.robot_mean, anchor.robot_std, strict=True))

    def _penalty(self, taps: Taps) -> list[Tensor]:
        """Of each block, the squared distance of this batch's tokens to the anchor; of a micro-batch, its part in that."""
        mask = taps.counted(self.options.tokens)
        if self.part != WHOLE:
            whole, parts = self._sums.distances(taps.states, mask, self._statistics, whiten=self.options.whiten)
            self._drift = whole
            return parts
        if self.options.samples:
            mask = sample_tokens(mask, self.options.samples, seed=self.steps)
        penalty = anchor_distances(taps.states, mask, self._statistics, whiten=self.options.whiten)
        self._drift = [w2.detach() for w2 in penalty]
        return penalty

    def _project(self, descent: Gradients) -> dict[str, list[Any]]:
        """Take the conflict with the penalty's gradient out of `descent`, in place; diagnostics hold None for a frozen block."""
        remove = remove_conflict_each if self.options.group == "tensor" else remove_conflict
        spans = [list(self._layers)] if self.options.group == "model" else [[layer] for layer in self._layers]
        shown: dict[str, list[Any]] = {key: [None] * len(self._drift) for key in ("cosine", "projected", "energy_shed")}
        for span in spans:
            names = [name for layer in span for name in self._layers[layer]]
            conflict = remove([descent[n] for n in names], [self._pull[n] for n in names])
            for layer in span:
                shown["cosine"][layer] = conflict.cosine
                shown["projected"][layer] = conflict.projected.int()
                shown["energy_shed"][layer] = conflict.energy_shed
        if self.options.every == 1:
            self._pull = {}  # as large as the blocks are; nobody needs it until the next backward pass
        return shown
