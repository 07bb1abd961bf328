"""The parts of a stock Hugging Face VLM by name: the one place that knows what SmolVLM and PaliGemma call them.

Both are a vision tower, a connector and a text decoder, with other names: `text_model` and `vision_model` in SmolVLM,
`language_model` and `vision_tower` in PaliGemma. Names here are those of the VLM on its own; inside a policy they follow
the adapter's `vlm_prefix`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vla_tune.vlm.checkpointing import recomputing

TEXT = r"model\.(text_model|language_model)\.layers\.\d+"
"""A regular expression for the full names of the text decoder's blocks."""
VISION = r"model\.(vision_model|vision_tower(\.vision_model)?)\.encoder\.layers\.\d+"
"""The same for the vision tower's blocks."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder block."""
_DECODERS = ("text_model", "language_model")
_GROUPS = {
    "model.text_model.embed_tokens": "embeddings",
    "model.text_model.norm": "norm",
    "model.vision_model": "vision",
    "model.connector": "connector",
    "model.language_model.embed_tokens": "embeddings",
    "model.language_model.norm": "norm",
    "model.vision_tower": "vision",
    "model.multi_modal_projector": "connector",
    "lm_head": "head",
}


# The text decoder and its residual stream.


def decoder_of(vlm: nn.Module) -> nn.Module:
    """Return the text decoder of a VLM: its `layers`, and the `norm` before the head."""
    inner: Any = vlm.model
    decoder: nn.Module = next(getattr(inner, name) for name in _DECODERS if hasattr(inner, name))
    return decoder


def decoder_dtype(vlm: nn.Module) -> torch.dtype:
    """Return the type that the decoder's matrices are in; its norms may be in another."""
    decoder: Any = decoder_of(vlm)
    dtype: torch.dtype = decoder.layers[0].self_attn.q_proj.weight.dtype
    return dtype


@dataclass
class Taps:
    """What one forward pass left behind.

    states: the output of each decoder block on the prefix, `[batch, tokens, width]` each, blocks from 0.
    mask: which of these tokens are image or question, `[batch, tokens]` (policy path only).
    text: where the question stands among the tokens (policy path only).
    """

    states: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = None
    text: slice = slice(0)

    def counted(self, tokens: str) -> Tensor:
        """Return the `mask` (`all`), or what of it is `image` or `text`."""
        assert self.mask is not None
        if tokens == "all":
            return self.mask
        text = torch.zeros_like(self.mask)
        text[:, self.text] = True
        return self.mask & (text if tokens == "text" else ~text)


def first_norm(block: nn.Module) -> nn.Module:
    """Return the norm that a decoder block begins with.

    lerobot drives a policy's VLM by hand: it calls the norms and projections, never the block. So hooks sit on the norms, which
    run in lerobot's path and in the stock Hugging Face path alike.
    """
    return block.get_submodule("input_layernorm")


@contextmanager
def residual_taps(vlm: nn.Module, taps: Taps) -> Iterator[Taps]:
    """Fill `taps.states` with the block outputs of the VLM's next forward pass, in either path.

    The input of a block's first norm is the output of the block before it; the last block's is read before the final norm.
    """
    decoder: Any = decoder_of(vlm)
    norms = [first_norm(layer) for layer in decoder.layers[1:]] + [decoder.norm]

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not recomputing():
            taps.states.append(inputs[0])

    handles = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


# Groups of parameters.


def vlm_group_of(name: str) -> str:
    """Return the group of a parameter of the VLM on its own: `layers.3`, `embeddings`, `vision`, `connector`, `norm`, `head`."""
    for decoder in _DECODERS:
        if name.startswith(f"model.{decoder}.layers."):
            return ".".join(name.removeprefix(f"model.{decoder}.").split(".")[:2])
    for start, group in _GROUPS.items():
        if name.startswith(start):
            return group
    raise AssertionError(f"no group for the VLM parameter {name}")


# Blocks and linear layers.


def part_blocks(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Return the modules whose full name matches, in order."""
    return [(name, module) for name, module in model.named_modules() if re.fullmatch(pattern, name)]


def mlp_of(block: nn.Module) -> tuple[nn.Module, nn.Module, int] | None:
    """Return a transformer block's norm before its MLP, the MLP, and the width of the residual stream; None where it has none."""
    norm: Any = getattr(block, "layer_norm2", None) or getattr(block, "post_attention_layernorm", None)
    mlp: Any = getattr(block, "mlp", None)
    if norm is None or mlp is None:
        return None
    return norm, mlp, next(part.in_features for part in mlp.modules() if isinstance(part, nn.Linear))


def linears(vlm: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that a projection can protect, by name: linear ones, and convolutions whose windows do not overlap (patches)."""
    return {
        name: module
        for name, module in vlm.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == module.stride)
    }


def with_block_linears(vlm: nn.Module, names: Collection[str]) -> list[str]:
    """Return the names of `linears` that are among `names` or in a block of the decoder or the vision tower, in the VLM's order."""
    return [name for name in linears(vlm) if name in names or re.fullmatch(rf"({TEXT}|{VISION})\..+", name)]


def projections_of(numbers: Collection[str]) -> str:
    """Return a regular expression for the full names of the linear layers in the decoder's blocks of these numbers."""
    return rf"model\.(text|language)_model\.layers\.({'|'.join(map(re.escape, numbers))})\..*\.({'|'.join(PROJECTIONS)})"
