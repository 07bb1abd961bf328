"""What a VLM's linear layers read in a forward pass: second moments of their inputs, gathered by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_tune.geometry.subspace import SecondMoment, SketchedMoment, add_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class LinearInputs:
    """Second moments by the layer that was first to read a tensor, and who reads the same one.

    rank: layers wider than `exact_width` are sketched with this rank.
    mask: which tokens of the pass that comes count, `[batch, tokens]`; inputs of another shape (patches) count whole.
    tokens: how often each token was read, int64 `[vocabulary]`.
    moments: by the name of an input's first reader.
    reads: linear layer to the first reader of its input; q, k and v share one, gate and up another.
    """

    exact_width: int
    rank: int
    mask: Tensor | None = None
    tokens: Tensor | None = None
    moments: dict[str, SecondMoment | SketchedMoment] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    _last: tuple[Tensor | None, str] = (None, "")

    def expect(self, ids: Tensor, mask: Tensor, vocabulary: int) -> None:
        """Say which tokens `[batch, tokens]` the next pass reads, and which of them count."""
        self.mask = mask
        count = torch.bincount(ids[mask], minlength=vocabulary)
        self.tokens = count if self.tokens is None else self.tokens + count

    @contextmanager
    def watching(self, vlm: PreTrainedModel, names: list[str]) -> Iterator[None]:
        """Gather from the named layers of every pass inside the block."""
        modules = dict(vlm.named_modules())
        handles = [modules[name].register_forward_pre_hook(self._hook(name)) for name in names]
        try:
            yield
        finally:
            self._last = (None, "")
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tensor, first = self._last
            if tensor is inputs[0]:
                self.reads[name] = first
                return
            self._last = (inputs[0], name)
            self.reads[name] = name
            rows = _rows(module, inputs[0].detach(), self.mask)
            add_rows(self.moments, name, rows, exact_width=self.exact_width, rank=self.rank)

        return gather


def _rows(module: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """The input vectors that count, `[n, d]`; of a patch convolution, the pixels of each patch."""
    if isinstance(module, nn.Conv2d):
        x = nn.functional.unfold(x, module.kernel_size, stride=module.stride).transpose(1, 2)  # type: ignore[arg-type]
    if mask is not None and x.shape[:-1] == mask.shape:
        x = x[mask]
    return x.reshape(-1, x.shape[-1]).float()
