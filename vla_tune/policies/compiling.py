"""torch.compile of the parts that a policy's blocks have in common, one graph for all blocks instead of one for the whole model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vla_tune.errors import UserError
from vla_tune.policies import adapt
from vla_tune.vlm.parts import TEXT, VISION, part_blocks

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

NORMS = ("input_layernorm", "post_attention_layernorm")
"""The text blocks' and the expert's; a vision tower's are torch's own, one kernel already."""


def compiled(policy: PreTrainedPolicy) -> int:
    """Compile the MLPs and norms of all transformer blocks, in place; how many they are. They are compiled when they are first used.

    Names of parameters and hooks on these modules stay as they are; a copy of the policy computes with its own weights.

    Raises:
        UserError: there is no C++ compiler.

    """
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise UserError(f"train.compile=true: there is no {compiler} here, and torch.compile needs a C++ compiler; install g++")
    # A hook that is set later on a layer inside a compiled part would be passed over in silence.
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # type: ignore[attr-defined]  # noqa: SLF001
    forwards: dict[type, Callable[..., Any]] = {}
    parts = blocks_parts(policy)
    for part in parts:
        kind = type(part)
        if kind not in forwards:
            forwards[kind] = torch.compile(kind.forward)
        part.forward = partial(forwards[kind], part)
    return len(parts)


def blocks_parts(policy: PreTrainedPolicy) -> list[nn.Module]:
    """MLPs and norms of the blocks of text, vision tower and action expert."""
    adapter = adapt(policy)
    blocks = [*(block for _, block in part_blocks(adapter.vlm, f"({TEXT}|{VISION})")), *adapter.expert_layers()]
    named = [(name, part) for block in blocks for name, part in block.named_children()]
    return [part for name, part in named if name == "mlp" or (name in NORMS and not isinstance(part, nn.LayerNorm))]
