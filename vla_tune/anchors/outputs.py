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

    A gradient is added and let go of as it arrives. No weight's gradient is computed, nor what that alone needs kept in memory.

    rank: layers wider than `exact_width` are sketched with this rank.
    """

    exact_width: int
    rank: int
    moments: dict[str, SecondMoment | SketchedMoment] = field(default_factory=dict)
    _waiting: dict[str, tuple[nn.Module, Tensor]] = field(default_factory=dict)
    _adding: bool = False

    @contextmanager
    def watching(self, vlm: nn.Module, names: list[str]) -> Iterator[None]:
        """Freeze the VLM, and expect gradients at the named layers' outputs of every pass inside the block; `add` makes them come."""
        vlm.requires_grad_(requires_grad=False)
        modules = dict(vlm.named_modules())
        handles = [modules[name].register_forward_hook(self._hook(name)) for name in names]
        try:
            yield
        finally:
            self._waiting = {}
            for handle in handles:
                handle.remove()

    def add(self, felt: Tensor) -> None:
        """Add the gradients of a scalar of the last pass; a layer that it does not depend on has zeros."""
        self._adding = True
        try:
            felt.backward()  # type: ignore[no-untyped-call]
        finally:
            self._adding = False
        for name, (module, empty) in list(self._waiting.items()):
            self._add(name, module, torch.zeros_like(empty))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def expect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            if not output.requires_grad:  # nothing before it is watched: the graph begins here
                output.requires_grad_()
            if self._adding:  # a checkpointed block is computed again
                return
            self._waiting[name] = module, output.new_empty(()).expand(output.shape)  # its shape, not its memory
            output.register_hook(lambda gradient: self._add(name, module, gradient))

        return expect

    def _add(self, name: str, module: nn.Module, gradient: Tensor) -> None:
        self._waiting.pop(name, None)
        places = gradient.flatten(2).transpose(1, 2) if isinstance(module, nn.Conv2d) else gradient
        add_rows(self.moments, name, places.detach().flatten(0, -2).float(), exact_width=self.exact_width, rank=self.rank)
