"""What a VLM's answers feel of a change at its linear layers' outputs: second moments of the answers' gradients there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vla_tune.geometry.subspace import SecondMoment, SketchedMoment, add_rows


@dataclass
class OutputGradients:
    """Second moments, by layer, of gradients with respect to its outputs, over all tokens.

    rank: layers wider than `exact_width` are sketched with this rank.
    """

    exact_width: int
    rank: int
    moments: dict[str, SecondMoment | SketchedMoment] = field(default_factory=dict)
    _outputs: dict[str, tuple[nn.Module, Tensor]] = field(default_factory=dict)

    @contextmanager
    def watching(self, vlm: nn.Module, names: list[str]) -> Iterator[None]:
        """Remember the named layers' outputs of every pass inside the block; `add` lets go of them."""
        modules = dict(vlm.named_modules())
        handles = [modules[name].register_forward_hook(self._hook(name)) for name in names]
        try:
            yield
        finally:
            self._outputs = {}
            for handle in handles:
                handle.remove()

    def add(self, felt: Tensor) -> None:
        """Add the gradients of a scalar of the last pass; no weight's gradient is computed."""
        gradients = torch.autograd.grad(felt, [output for _, output in self._outputs.values()], materialize_grads=True)
        for (name, (module, _)), gradient in zip(self._outputs.items(), gradients, strict=True):
            places = gradient.flatten(2).transpose(1, 2) if isinstance(module, nn.Conv2d) else gradient
            add_rows(self.moments, name, places.flatten(0, -2).float(), exact_width=self.exact_width, rank=self.rank)
        self._outputs = {}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            self._outputs[name] = module, output

        return remember
