"""Taking an anchor: the passes over questions and robot frames, and what is stored of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vla_tune.anchors.directions import Directions
from vla_tune.anchors.frames import Frames, frame_moments
from vla_tune.anchors.inputs import LinearInputs
from vla_tune.anchors.outputs import OutputGradients
from vla_tune.anchors.passes import answer_gradients, policy_moments, stock_moments
from vla_tune.geometry.subspace import rank_of
from vla_tune.policies.loading import grafted_vlm

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

    from vla_tune.config import AnchorConfig
    from vla_tune.geometry.gaussian import Moments
    from vla_tune.geometry.subspace import SecondMoment, SketchedMoment
    from vla_tune.policies.base import PolicyAdapter


@dataclass(frozen=True)
class Layers:
    """The linear layers of a VLM, by name, that an anchor is taken of.

    looked_at: whose inputs are read. trained: at whose outputs the answers' gradients are taken.
    """

    looked_at: list[str]
    trained: list[str]


@dataclass(frozen=True)
class Taken:
    """All that an anchor holds.

    policy, stock, robot: moments of each block's output in the policy's path over questions, in the Hugging Face path, and in the
        policy's path over robot frames (empty where there are none).
    inputs: by an input's first reader. outputs: by layer, of the answers' gradients.
    reads: linear layer to the first reader of its input.
    tokens: how often each token of the vocabulary was read.
    robot_inputs: the robot frames' second moments, by an input's first reader.
    """

    policy: list[Moments]
    stock: list[Moments]
    robot: list[Moments]
    inputs: dict[str, Directions]
    outputs: dict[str, Directions]
    reads: dict[str, str]
    tokens: Tensor | None
    robot_inputs: dict[str, SecondMoment | SketchedMoment]


def take_anchor(
    adapter: PolicyAdapter, base: str, questions: Dataset, layers: Layers, config: AnchorConfig, frames: Callable[[], Frames | None]
) -> Taken:
    """Go over the questions in both paths, over some of them with their answers' gradients, and over the robot's frames.

    Args:
        adapter: of the policy that training starts from, in evaluation mode.
        base: Hub id or folder of its base VLM, whose upper layers answer.
        frames: opens the robot's frames; asked when the questions are done.

    """
    read = LinearInputs(config.exact_width, config.rank)
    policy, stock, inputs, outputs = _over_questions(adapter, base, questions, layers, config, read)
    robot, robot_inputs = _over_frames(frames(), layers.looked_at, config)
    return Taken(policy, stock, robot, inputs, outputs, read.reads, read.tokens, robot_inputs)


def _over_questions(
    adapter: PolicyAdapter, base: str, questions: Dataset, layers: Layers, config: AnchorConfig, read: LinearInputs
) -> tuple[list[Moments], list[Moments], dict[str, Directions], dict[str, Directions]]:
    """The VLM at full depth is let go of before the robot's frames need a policy of their own."""
    vlm, processor = grafted_vlm(adapter.policy, base)
    policy = policy_moments(adapter, questions, config.batch_size)
    nn.Module.to(vlm, next(adapter.policy.parameters()).device)
    with read.watching(vlm, layers.looked_at):
        stock = stock_moments(vlm, processor, questions, config.batch_size, "anchor, Hugging Face path", read)
    inputs = _directions(read.moments, config)
    return policy, stock, inputs, _directions(_felt(vlm, processor, questions, layers.trained, config), config)


def _felt(
    vlm: PreTrainedModel, processor: ProcessorMixin, questions: Dataset, layers: list[str], config: AnchorConfig
) -> dict[str, SecondMoment | SketchedMoment]:
    """Second moments of the answers' gradients at the layers' outputs over the first `anchor.gradients` questions."""
    felt = OutputGradients(config.exact_width, config.rank)
    if config.gradients:
        asked = questions.select(range(min(config.gradients, len(questions))))
        with felt.watching(vlm, layers):
            answer_gradients(vlm, processor, asked, config.batch_size, felt)
    return felt.moments


def _over_frames(
    frames: Frames | None, layers: list[str], config: AnchorConfig
) -> tuple[list[Moments], dict[str, SecondMoment | SketchedMoment]]:
    read = LinearInputs(config.exact_width, config.rank)
    if frames is None:
        return [], {}
    with read.watching(frames.adapter.vlm, layers):
        return frame_moments(frames, read), read.moments


def _directions(moments: dict[str, SecondMoment | SketchedMoment], config: AnchorConfig) -> dict[str, Directions]:
    """What is stored of each second moment, which is let go of: together they can be larger than the VLM."""
    found = {}
    for name in list(moments):
        moment = moments.pop(name)
        values, vectors = moment.principal()
        kept = min(rank_of(values, config.energy, moment.energy), config.rank)
        found[name] = Directions(vectors[:, :kept].float().cpu().contiguous(), values.float().cpu(), moment.energy)
    return found
