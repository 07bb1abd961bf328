"""lerobot's SmolVLA, seen from a method: its layers, its groups of parameters, its prefix, its VLM.

lerobot drives the VLM by hand (`input_layernorm`, `q_proj`, ... are called, never the decoder layer), so hooks sit on
the norms: the input of a layer's first norm is the output of the block before it, in lerobot's path and in the
stock Hugging Face path alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from transformers import SmolVLMForConditionalGeneration

VLM_PREFIX = "model.vlm_with_expert.vlm."
_TEXT = "model.text_model."


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
        """The `mask` (`all`), or what of it is `image` or `text`."""
        assert self.mask is not None
        if tokens == "all":
            return self.mask
        text = torch.zeros_like(self.mask)
        text[:, self.text] = True
        return self.mask & (text if tokens == "text" else ~text)


class SmolVLAAdapter:
    """One policy's VLM by name and by place. Holds no state of its own."""

    def __init__(self, policy: SmolVLAPolicy) -> None:
        self.policy = policy

    @property
    def vlm(self) -> SmolVLMForConditionalGeneration:
        """The VLM inside the policy (cut where the policy cuts it)."""
        vlm: SmolVLMForConditionalGeneration = self.policy.model.vlm_with_expert.vlm
        return vlm

    def layers(self) -> list[nn.Module]:
        """The VLM's decoder blocks that the policy uses, from the first."""
        return list(self.vlm.model.text_model.layers)

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        return self.vlm.lm_head.in_features

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter once, by the part of the policy it belongs to: `{group: {full name: parameter}}`."""
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.policy.named_parameters():
            groups.setdefault(group_of(name), {})[name] = parameter
        return groups

    @contextmanager
    def taps(self) -> Iterator[Taps]:
        """Record the residual stream and the token mask of the policy's next forward pass on its prefix."""
        taps = Taps()
        model = self.policy.model
        embed_prefix = model.embed_prefix

        def recording(images: object, img_masks: object, lang_tokens: Tensor, lang_masks: Tensor, state: Tensor) -> tuple[Tensor, ...]:
            embeddings, padding, blocks = embed_prefix(images, img_masks, lang_tokens, lang_masks, state=state)
            taps.text = _question(blocks, lang_tokens)
            taps.mask = _image_and_question(padding, blocks, lang_tokens, self._bos)
            return embeddings, padding, blocks

        model.embed_prefix = recording
        try:
            with residual_taps(self.vlm, taps):
                yield taps
        finally:
            del model.embed_prefix

    def prefix_forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Taps:
        """The policy's own pass over one camera image and a text, as at inference, without the action expert.

        Args:
            images: `[batch, 3, height, width]` in 0..1, resized by the policy's own rule.
            tokens, token_mask: `[batch, length]`, padded on the right.

        """
        from lerobot.policies.common.vla_utils import resize_with_pad

        config = self.policy.config
        if config.resize_imgs_with_padding is not None:
            width, height = config.resize_imgs_with_padding
            images = resize_with_pad(images, height, width, pad_value=0)
        batch = images.shape[0]
        present = torch.ones(batch, dtype=torch.bool, device=images.device)
        state = torch.zeros(batch, config.max_state_dim, device=images.device)  # the mean state; nothing attends to it
        return self._prefix([images * 2 - 1], [present], tokens, token_mask, state)

    def batch_prefix(self, batch: dict[str, Any]) -> Taps:
        """The same pass over the prefix of a batch that the policy's `forward` takes."""
        from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

        images, present = self.policy.prepare_images(batch)
        return self._prefix(
            images, present, batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK], self.policy.prepare_state(batch)
        )

    def _prefix(self, images: list[Tensor], present: list[Tensor], tokens: Tensor, token_mask: Tensor, state: Tensor) -> Taps:
        from lerobot.policies.common.vla_utils import make_att_2d_masks

        model = self.policy.model
        with self.taps() as taps:
            embeddings, padding, blocks = model.embed_prefix(images, present, tokens, token_mask, state=state)
            model.vlm_with_expert.forward(
                attention_mask=make_att_2d_masks(padding, blocks),
                position_ids=torch.cumsum(padding, dim=1) - 1,
                past_key_values=None,
                inputs_embeds=[embeddings, None],
                use_cache=True,
            )
        return taps

    @property
    def _bos(self) -> int | None:
        return self.policy.model.vlm_with_expert.processor.tokenizer.bos_token_id  # type: ignore[no-any-return]


@contextmanager
def residual_taps(vlm: SmolVLMForConditionalGeneration, taps: Taps) -> Iterator[Taps]:
    """Fill `taps.states` with the block outputs of the VLM's next forward pass, in either path."""
    text = vlm.model.text_model
    norms = [layer.input_layernorm for layer in text.layers[1:]] + [text.norm]

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taps.states.append(inputs[0])

    handles = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def group_of(name: str) -> str:
    """The group of a policy parameter's full name: `vlm.layers.3`, `vlm.vision`, `expert`, `state_proj`, ..."""
    if not name.startswith(VLM_PREFIX):
        return "state_proj" if ".state_proj." in f".{name}" else "expert"
    return f"vlm.{vlm_group_of(name.removeprefix(VLM_PREFIX))}"


def vlm_group_of(name: str) -> str:
    """The group of a parameter of the VLM on its own: `layers.3`, `embeddings`, `vision`, `connector`, `norm`, `head`."""
    if name.startswith(f"{_TEXT}layers."):
        return ".".join(name.removeprefix(_TEXT).split(".")[:2])
    for start, group in (
        (f"{_TEXT}embed_tokens", "embeddings"),
        (f"{_TEXT}norm", "norm"),
        ("model.vision_model", "vision"),
        ("model.connector", "connector"),
        ("lm_head", "head"),
    ):
        if name.startswith(start):
            return group
    raise AssertionError(f"no group for the VLM parameter {name}")


def _question(blocks: Tensor, tokens: Tensor) -> slice:
    """Where the question stands in the prefix: last, before the state, which opens an attention block."""
    state = int(blocks[0].int().argmax())
    return slice(state - tokens.shape[1], state)


def _image_and_question(padding: Tensor, blocks: Tensor, tokens: Tensor, bos: int | None) -> Tensor:
    """Prefix tokens that are image or text: neither padding, nor the state, nor BOS."""
    mask = padding & ~blocks.bool()
    if bos is not None:
        mask = mask.clone()
        mask[:, _question(blocks, tokens)] &= tokens != bos
    return mask
