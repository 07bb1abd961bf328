"""Activation checkpointing of lerobot's own loop over the layers of VLM and expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vla_tune.vlm.checkpointing import checkpointed

Outputs = tuple[list[Tensor], Any]


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
