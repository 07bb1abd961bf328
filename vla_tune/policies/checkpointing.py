"""Activation checkpointing: what a block computes is not kept but computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Outputs = tuple[list[Tensor], Any]


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


def layer_by_layer(
    inner: nn.Module,
    alone: Callable[[Any], Iterator[tuple[list[nn.Module], Any]]],
    norms: Callable[[Any, list[Tensor], dict[str, Any]], list[Tensor]],
    **call: Any,
) -> Outputs:
    """lerobot's forward pass through VLM and expert side by side, run a layer at a time, each of them checkpointed.

    lerobot's loop over the layers stands inside one method. It is called here on a stand-in for the model that has one layer.

    Args:
        inner: lerobot's model of VLM and expert.
        alone: the modules of each layer, and the stand-in, whose final norms do nothing.
        norms: the final norms of what the last layer leaves, given what lerobot passes.
        call: what lerobot passes.

    """
    forward, streams = type(inner).forward, call["inputs_embeds"]
    if call.get("use_cache") or not torch.is_grad_enabled() or any(stream is None for stream in streams):
        outputs: Outputs = forward(inner, **call)
        return outputs
    for modules, stand_in in alone(inner):
        streams = checkpointed(nn.ModuleList(modules), partial(_block, forward, stand_in, call), *streams)
    return norms(inner, list(streams), call), None


def _block(forward: Callable[..., Outputs], stand_in: Any, call: dict[str, Any], *streams: Tensor) -> tuple[Tensor, ...]:
    return tuple(forward(stand_in, **{**call, "inputs_embeds": list(streams)})[0])
