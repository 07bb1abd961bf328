"""Activation checkpointing: what a block computes is not kept but computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputing() -> bool:
    """Whether a forward pass is one that the backward pass repeats: what watches forward passes has seen it already."""
    return bool(torch._C._current_graph_task_id() != -1)  # noqa: SLF001  # as torch.utils.module_tracker finds out


def checkpointed(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, a forward pass through `module`, of which only the inputs are kept.

    A module inside whose result depends on more than its inputs has a method `as_now()`. It returns a function that makes a
    context in which the module computes as it does now. The second computation runs in it.
    """
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))


class _AsThen:
    """Computes as when this was made; can be entered any number of times, once a backward pass."""

    def __init__(self, module: nn.Module) -> None:
        parts = [part for part in module.modules() if hasattr(part, "as_now")]
        self._contexts: list[Callable[[], AbstractContextManager[None]]] = [part.as_now() for part in parts]  # type: ignore[operator]

    def __enter__(self) -> None:
        self._stack = ExitStack()
        for context in self._contexts:
            self._stack.enter_context(context())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], _AsThen]:
    return nullcontext(), _AsThen(module)


def checkpoint_blocks(model: nn.Module, *, on: bool) -> None:
    """Whether the blocks of a stock Hugging Face model, pictures' and text's, are checkpointed while it trains."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.gradient_checkpointing = on
            block._gradient_checkpointing_func = partial(checkpointed, block)  # type: ignore[assignment]  # noqa: SLF001
