"""Subspace anchors: the VLM may change only where its answers do not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_tune.anchors.protection import Protection
from vla_tune.console import say
from vla_tune.methods.base import Gradients, Method
from vla_tune.vlm.parts import vlm_group_of


class Subspace(Method):
    """Every linear layer of the VLM changes outside the pairs of an input and an output direction that its answers depend on.

    With `sides=inputs` outside the leading directions of its VQA inputs, whatever the answers feel: then no output on them changes,
    and so no answer. With `both`, the default, features may change where the answers do not feel it, to first order
    (docs/subspace.md). The gradient is projected, so that the optimizer's moments live outside; every few steps the change since the start
    loses what Adam's division by element and weight decay bring back. Token embeddings read on VQA are rows that stay; norms and
    biases, which every input reads, stay too. After gradient projection memory (arXiv 2103.09762) and Adam-NSCL (2103.07113).
    """

    name: ClassVar[str] = "subspace"
    needs_anchor: ClassVar[bool] = True

    def prepare(self) -> None:
        self.require_trainable_vlm()
        assert self.anchor is not None
        vlm: Any = self.adapter.vlm
        self.options = self.settings.subspace
        self._protection = Protection(self.anchor, self.options.sides, self.options.energy, vlm, dict(vlm.named_parameters()))
        say(str(self._protection))

    def combine(self, gradients: dict[str, Gradients]) -> None:
        if self.options.project in ("gradient", "both"):
            self.diagnostics = {"energy_shed": self._by_block(self._protection.project_gradients())}

    def _by_block(self, energies: dict[str, Tensor]) -> list[Tensor | None]:
        """The share of the task gradient's energy that each decoder block lost; None for a frozen block."""
        blocks: dict[str, list[Tensor]] = {}
        for name, energy in energies.items():
            blocks.setdefault(vlm_group_of(name), []).append(energy)
        shed: list[Tensor | None] = []
        for block in range(len(self.adapter.layers())):
            own = blocks.get(f"layers.{block}")
            whole, free = torch.stack(own).double().sum(0) if own else (None, None)
            shed.append(None if whole is None else torch.where(whole > 0, 1 - free / whole, 0))
        return shed

    def after_update(self) -> bool:
        if self.steps % self.options.every == 0:
            self._project_changes()
        return False

    def finish(self, folder: Path) -> None:
        """What the last steps brought in goes too: only the VLM that is exported has to be as good as the old one."""
        self._project_changes()

    def _project_changes(self) -> None:
        if self.options.project in ("update", "both"):
            self._protection.project_changes()
