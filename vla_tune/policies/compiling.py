"""`torch.compile` of the parts of a policy that are worth it: the MLPs of VLM and expert, and the blocks of the vision tower.

lerobot's attention is driven by hand, a method that is told the layer's number: compiled whole, it becomes one graph of all layers,
which took minutes to make. These parts are equal modules, so one graph serves all layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from vla_tune.policies.base import PolicyAdapter


def compile_parts(adapter: PolicyAdapter) -> int:
    """Compile a policy's MLPs and vision blocks in place, at their first call for each shape; how many parts these are.

    Parameters keep their names. A copy of the policy is not compiled.
    """
    parts = [*(layer.mlp for layer in (*adapter.layers(), *adapter.expert_layers())), *_vision_blocks(adapter.vlm)]
    for part in parts:
        part.compile(dynamic=False)  # type: ignore[operator]
    return len(parts)


def _vision_blocks(vlm: nn.Module) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [
        part
        for name, part in vlm.named_modules()
        if isinstance(part, GradientCheckpointingLayer) and (".vision_model." in name or ".vision_tower." in name)
    ]
