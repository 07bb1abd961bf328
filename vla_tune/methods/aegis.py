"""AEGIS (arXiv 2604.16067), from what its abstract and digests say; docs/methods.md lists the choices that are ours."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.console import say
from vla_tune.geometry.gaussian import batch_moments, wasserstein2
from vla_tune.geometry.projection import remove_conflict
from vla_tune.methods.base import Gradients, Method


class Aegis(Method):
    """A static Gaussian anchor per layer; the task gradient loses, layer by layer, what would raise the penalty.

    The penalty is the squared Wasserstein-2 distance of this batch's residual stream to the anchor, summed over the
    blocks. Its gradient is never added: it only says which direction of each block's task gradient must go. Only
    decoder blocks are projected; embeddings, connector and expert follow the task.
    """

    name: ClassVar[str] = "aegis"
    needs_anchor: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        groups = self.adapter.groups()
        self._layers: dict[int, dict[str, nn.Parameter]] = {}
        frozen = []
        for layer in range(len(self.adapter.layers())):
            trained = {name: p for name, p in groups[f"vlm.layers.{layer}"].items() if p.requires_grad}
            if trained:
                self._layers[layer] = trained
            else:
                frozen.append(str(layer))
        if frozen:
            say(f"aegis: layer {', '.join(frozen)} of the VLM is frozen by lerobot; it has no task gradient and is not projected")

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with self.adapter.taps() as taps:
            loss, _ = self.policy.forward(batch)
        assert taps.mask is not None
        assert self.anchor is not None
        penalty = []
        for states, mean, std in zip(taps.states, self.anchor.mean, self.anchor.std, strict=True):
            now = batch_moments(states, taps.mask)
            penalty.append(wasserstein2(*now, mean.to(states.device), std.to(states.device)))
        self._drift = [w2.item() for w2 in penalty]
        return {"task": loss, "anchor": torch.stack(penalty).sum()}

    def combined_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for layer in self._layers.values() for name, p in layer.items()}

    def combine(self, gradients: dict[str, Gradients]) -> dict[str, list[Any]]:
        """Project each block's task gradient; diagnostics hold None for a frozen block. Drift is W2^2 / width."""
        shown: dict[str, list[Any]] = {"cosine": [], "projected": [], "energy_shed": [], "drift": []}
        for layer, drift in enumerate(self._drift):
            shown["drift"].append(drift / self.adapter.width)
            if layer not in self._layers:
                for key in ("cosine", "projected", "energy_shed"):
                    shown[key].append(None)
                continue
            names = list(self._layers[layer])
            conflict = remove_conflict([gradients["task"][n] for n in names], [gradients["anchor"][n] for n in names])
            shown["cosine"].append(conflict.cosine)
            shown["projected"].append(int(conflict.projected))
            shown["energy_shed"].append(conflict.energy_shed)
        return shown
