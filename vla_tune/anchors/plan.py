"""What taking an anchor needs in memory, before there are weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vla_tune.anchors.inputs import LinearInputs
from vla_tune.anchors.memory import Footprint, checkpointed
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.vlm.parts import decoder_of, linears

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PretrainedConfig, PreTrainedModel

    from vla_tune.anchors.taking import Layers
    from vla_tune.config import AnchorConfig


@dataclass(frozen=True)
class QuestionSize:
    """tiles: pictures of the vision tower's size that a question's picture becomes. patches: of one. tokens: of prompt and answer."""

    tiles: int
    patches: int
    tokens: int

    @classmethod
    def of(cls, config: PretrainedConfig, inputs: Mapping[str, Tensor]) -> QuestionSize:
        """Of one question as its processor prepares it."""
        *tiles, _, height, width = inputs["pixel_values"].shape
        patch = config.vision_config.patch_size
        return cls(math.prod(tiles), (height // patch) * (width // patch), inputs["input_ids"].shape[1])


def planned_bytes(
    config: PretrainedConfig, layers: Layers, settings: AnchorConfig, question: QuestionSize, policy_bytes: int
) -> dict[str, int]:
    """The bytes held at the peak of each pass, one question at a time; the largest of them is what an anchor needs.

    The passes are made on tensors without values. What is stored of a layer is taken to be all of its directions, up to
    `anchor.rank`: how many carry `anchor.energy` is not known before.

    Args:
        config: of the base VLM, whole.
        layers: as the anchor will be taken of.
        settings: `exact_width`, `rank`, `frames` and `gradients` count.
        question: the largest there is.
        policy_bytes: the starting policy's weights.

    """
    from torch._subclasses import FakeTensorMode
    from transformers import AutoModelForImageTextToText

    with FakeTensorMode():
        vlm = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
        weights = sum(parameter.nbytes for parameter in vlm.parameters())
        read, felt = LinearInputs(settings.exact_width, settings.rank), OutputGradients(settings.exact_width, settings.rank)
        with torch.no_grad(), Footprint("cpu") as reading, read.watching(vlm, layers.looked_at):
            _pass(vlm, question, layers.looked_at)
        with Footprint("cpu") as feeling, checkpointed(vlm), felt.watching(vlm, layers.trained):
            felt.add(_pass(vlm, question, layers.trained))
    inputs = _stored(vlm, set(read.reads.values()), "in", settings.rank)
    outputs = _stored(vlm, layers.trained, "out", settings.rank)
    planned = {"questions": policy_bytes + weights + reading.kept + reading.peak}
    if settings.gradients:
        planned["gradients of the answers"] = policy_bytes + weights + inputs + feeling.kept + feeling.peak
    if settings.frames:
        planned["robot frames"] = 2 * policy_bytes + inputs + outputs * bool(settings.gradients) + reading.kept + reading.peak
    return planned


def _pass(vlm: PreTrainedModel, question: QuestionSize, names: list[str]) -> Tensor:
    """A question's way through the blocks of the vision tower and of the decoder, and through the named layers that are in neither."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    decoder = decoder_of(vlm)
    blocks = list(decoder.layers)  # type: ignore[arg-type]
    tower = [module for module in vlm.modules() if isinstance(module, GradientCheckpointingLayer) and module not in blocks]
    pictures = torch.empty(question.tiles, question.patches, vlm.config.vision_config.hidden_size)
    for block in tower:
        pictures = block(pictures, None)
    table: Any = vlm.get_input_embeddings()
    states = torch.empty(1, question.tokens, table.weight.shape[1])
    turns = decoder.rotary_emb(states, torch.arange(question.tokens)[None])  # type: ignore[operator]
    for block in blocks:
        out = block(states, position_embeddings=turns)
        states = out[0] if isinstance(out, tuple) else out
    inside = {id(part) for block in (*tower, *blocks) for part in block.modules()}
    modules = linears(vlm)
    others = [modules[name](_input(modules[name], question)) for name in names if id(modules[name]) not in inside]
    return torch.stack([one.sum() for one in (pictures, states, *others)]).sum()


def _input(module: nn.Linear | nn.Conv2d, question: QuestionSize) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.empty(1, question.tokens, module.in_features)
    side = math.isqrt(question.patches)
    height, width = module.kernel_size
    return torch.empty(question.tiles, module.in_channels, side * int(height), side * int(width))


def _stored(vlm: nn.Module, names: Iterable[str], side: str, rank: int) -> int:
    """The bytes of all directions, up to `rank`, of the layers' inputs or outputs, in float32."""
    modules = linears(vlm)
    widths = [_width(modules[name], side) for name in names]
    return sum(4 * width * (min(width, rank) + 1) for width in widths)


def _width(module: nn.Linear | nn.Conv2d, side: str) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    return module.in_channels * math.prod(module.kernel_size) if side == "in" else module.out_channels
