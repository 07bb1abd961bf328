"""What a VLM's residual stream looks like on VQA questions: moments of each decoder block's output, in both paths.

The policy's own prefix forward is not the VLM's (scaled embeddings, bidirectional attention, its own rotary base), so
statistics of the two are kept apart and never compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_tune.anchors.memory import Portions, checkpointed
from vla_tune.console import progress
from vla_tune.geometry.gaussian import Moments, gather, wasserstein2
from vla_tune.policies.base import PolicyAdapter
from vla_tune.vlm.batches import IGNORED, answered_inputs, reply_tokens
from vla_tune.vlm.parts import Taps, residual_taps
from vla_tune.vlm.prompts import prompts_of

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

    from vla_tune.anchors.inputs import LinearInputs
    from vla_tune.anchors.outputs import OutputGradients


@torch.no_grad()
def policy_moments(adapter: PolicyAdapter, questions: Dataset, batch_size: int) -> list[Moments]:
    """Moments of each block's output in the policy's prefix forward, over image and question tokens.

    A question is tokenised by lerobot's own processor steps, as an instruction would be.
    """
    policy = adapter.policy
    device = next(policy.parameters()).device
    tokenise = InstructionTokens(adapter)
    totals: list[Moments] = []

    def look(rows: range) -> None:
        batch = questions[rows.start : rows.stop]
        tokens, token_mask = tokenise(batch["question"])
        pictures = pixels(batch["image"], adapter.resized)
        taps = adapter.prefix_forward(pictures.to(device), tokens.to(device), token_mask.to(device))
        assert taps.mask is not None
        totals[:] = gather(totals, taps.states, taps.mask)
        counter.advance(len(rows))

    what = "anchor, policy path"
    with progress(what, len(questions), "questions") as counter:
        Portions(batch_size, device, what).deal(len(questions), look)
    return totals


@torch.no_grad()
def stock_moments(
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Dataset,
    batch_size: int,
    description: str,
    inputs: LinearInputs | None = None,
) -> list[Moments]:
    """Moments of each block's output in the Hugging Face forward, over the image's tokens and the question's own.

    Args:
        inputs: is told what each pass reads; these are all tokens but padding, the chat's frame and the right answer
            included, for an answer depends on them too.

    """
    totals: list[Moments] = []
    prompts = prompts_of(processor)

    def look(rows: range) -> None:
        batch = _batch(vlm, processor, questions, rows)
        del batch["labels"]
        if inputs is not None:
            vocabulary = len(vlm.get_input_embeddings().weight)  # type: ignore[arg-type]
            inputs.expect(batch["input_ids"], batch["attention_mask"].bool(), vocabulary)
        with residual_taps(vlm, Taps()) as taps:
            vlm.model(**batch, use_cache=False)
        totals[:] = gather(totals, taps.states, prompts.image_and_question(batch))
        counter.advance(len(rows))

    with progress(description, len(questions), "questions") as counter:
        Portions(batch_size, vlm.device, description).deal(len(questions), look)
    return totals


def answer_gradients(
    vlm: PreTrainedModel, processor: ProcessorMixin, questions: Dataset, batch_size: int, outputs: OutputGradients
) -> None:
    """Tell `outputs` what the answers feel of each layer: a sketch of their Jacobian, one random combination of logits an answer's token.

    The logits are those of all tokens that occur in these questions' answers, centred, for what they share moves no choice
    between them. With J the Jacobian of these logits and r standard normal, E[(J^T r)(J^T r)^T] = J^T J: the Gauss-Newton matrix of a
    squared error on them. A cross-entropy's would vanish where the VLM is sure.
    """
    head: Any = vlm.get_output_embeddings()
    candidates = torch.tensor(sorted(set(chain(*reply_tokens(processor, [right[0] for right in questions["answers"]])))), device=vlm.device)

    def feel(rows: range) -> None:
        batch = _batch(vlm, processor, questions, rows)
        answer = batch.pop("labels")[:, 1:] != IGNORED
        states = vlm.model(**batch, use_cache=False).last_hidden_state[:, :-1][answer]
        bias = None if head.bias is None else head.bias[candidates]
        logits = nn.functional.linear(states, head.weight[candidates], bias).float()  # not those of the whole vocabulary
        mixture = torch.cat([_normal(row, count, len(candidates)) for row, count in zip(rows, answer.sum(1).tolist(), strict=True)])
        outputs.add(((logits - logits.mean(-1, keepdim=True)) * mixture.to(logits.device)).sum())
        counter.advance(len(rows))

    what = "anchor, gradients of the answers"
    with checkpointed(vlm), progress(what, len(questions), "questions") as counter:
        Portions(batch_size, vlm.device, what).deal(len(questions), feel)


def _batch(vlm: PreTrainedModel, processor: ProcessorMixin, questions: Dataset, rows: range) -> dict[str, Tensor]:
    return {name: value.to(vlm.device) for name, value in answered_inputs(processor, questions, list(rows)).items()}


def _normal(row: int, *shape: int) -> Tensor:
    """Standard normal numbers that are a question's own, whatever it is batched with."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(row))


def drift(moments: list[Moments], mean: list[Tensor], std: list[Tensor]) -> list[float]:
    """Squared 2-Wasserstein distance of each block's stock statistics to the anchor's, divided by the width.

    Args:
        moments: `stock_moments` of the VLM over the anchor's questions.
        mean, std: the anchor's statistics of the Hugging Face path, for the blocks that the policy uses.

    """
    return [
        float(wasserstein2(now.mean.cpu(), now.std().cpu(), mean_a.double(), std_a.double())) / len(mean_a)
        for now, mean_a, std_a in zip(moments[: len(mean)], mean, std, strict=True)
    ]


class InstructionTokens:
    """lerobot's own steps that turn an instruction into tokens: its wording, then the tokenizer with padding on the right.

    Where the wording holds the robot's state (pi0.5), it is the mean state.
    """

    def __init__(self, adapter: PolicyAdapter) -> None:
        from lerobot.policies.factory import make_pre_post_processors

        self._state = adapter.policy.config.robot_state_feature
        preprocessor, _ = make_pre_post_processors(adapter.policy.config, dataset_stats=None)
        self._steps = [step for step in preprocessor.steps if type(step).__name__ in adapter.text_steps]
        assert len(self._steps) == len(adapter.text_steps)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, `[batch, length]`."""
        from lerobot.lerobot_types import TransitionKey
        from lerobot.processor.converters import create_transition
        from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

        state = {OBS_STATE: torch.zeros(len(texts), *self._state.shape)} if self._state else {}
        transition = create_transition(observation=state, complementary_data={"task": texts})
        for step in self._steps:
            transition = step(transition)
        observation = transition[TransitionKey.OBSERVATION]
        return observation[OBS_LANGUAGE_TOKENS], observation[OBS_LANGUAGE_ATTENTION_MASK]


def pixels(pictures: list[Image], resized: Callable[[Tensor], Tensor]) -> Tensor:
    """RGB pictures as `[batch, 3, height, width]` in 0..1; those of different sizes are `resized` one by one."""
    if len({picture.size for picture in pictures}) > 1:
        return torch.cat([resized(pixels([picture], resized)) for picture in pictures])
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
