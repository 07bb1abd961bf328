"""What pi0 and pi0.5 share: PaliGemma, whole, beside a Gemma expert; the prefix attends both ways."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.policies.base import PolicyAdapter
from vla_tune.vlm.parts import Taps, decoder_dtype, decoder_of

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.pretrained import PreTrainedPolicy
    from transformers import PaliGemmaForConditionalGeneration

PALIGEMMA = "google/paligemma-3b-pt-224"
"""The VLM that openpi's policies were made from; lerobot's configurations do not name it."""
BOS = 2
"""Of Gemma's vocabulary."""


class PaliGemmaAdapter(PolicyAdapter):
    """pi0's and pi0.5's. lerobot leaves the head untied from the embeddings, and untrained; here they are one parameter, as in the VLM."""

    vlm_prefix: ClassVar[str] = "model.paligemma_with_expert.paligemma."
    tokenizer: ClassVar[str | None] = PALIGEMMA
    changeable: ClassVar[frozenset[str]] = frozenset(
        (
            "n_action_steps",
            "freeze_vision_encoder",
            "train_expert_only",
            "num_inference_steps",
            "tokenizer_max_length",
            "gradient_checkpointing",
        )
    )

    def __init__(self, policy: PreTrainedPolicy) -> None:
        super().__init__(policy)
        self.vlm.lm_head.weight = self.vlm.get_input_embeddings().weight

    @classmethod
    def vlm_name(cls, config: PreTrainedConfig) -> str:  # noqa: ARG003
        return PALIGEMMA

    @classmethod
    def load(cls, path: str, config: PreTrainedConfig) -> PreTrainedPolicy:
        """lerobot prints what it could not load and goes on with random weights; here that is an error."""
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            policy = cls.policy_class().from_pretrained(path, config=config, strict=True)
        if "All keys loaded successfully" not in told.getvalue():
            _, _, problem = told.getvalue().partition("Loading model from")
            raise RuntimeError(f"lerobot: {problem.partition('Could not load')[2] or problem}")
        return policy

    def put_vlm(self, state: dict[str, Tensor]) -> None:
        """lerobot's table has fewer rows than PaliGemma's, which is padded behind its last token."""
        own = self.vlm.state_dict()
        self.vlm.load_state_dict({name: state[name][: len(tensor)] if tensor.dim() else state[name] for name, tensor in own.items()})

    @contextmanager
    def as_stock(self) -> Iterator[None]:
        """With a head of its own, equal to the embeddings."""
        table = self.vlm.get_input_embeddings().weight
        self.vlm.lm_head.weight = nn.Parameter(table.detach().clone(), requires_grad=False)
        try:
            yield
        finally:
            self.vlm.lm_head.weight = table

    def freeze_as_configured(self) -> None:
        self._thaw(self.inner)
        self.inner._set_requires_grad()  # noqa: SLF001

    def obey_settings(self) -> None:
        """lerobot looks at `gradient_checkpointing` when it makes a policy, and never again."""
        super().obey_settings()
        model = self.policy.model
        (model.gradient_checkpointing_enable if self.policy.config.gradient_checkpointing else model.gradient_checkpointing_disable)()

    def prepare_forward(self, dtype: torch.dtype = torch.float32, *, checkpointing: bool = False) -> None:
        """Also in place of lerobot's `gradient_checkpointing`: that checkpoints the model and each layer in it, a forward pass more."""
        checkpointing = checkpointing or self.policy.config.gradient_checkpointing
        self.policy.model.gradient_checkpointing_disable()
        super().prepare_forward(dtype, checkpointing=checkpointing)

    def lerobot_dtype(self) -> torch.dtype:
        """What the policy's `dtype` says."""
        dtype: torch.dtype = getattr(torch, self.policy.config.dtype)
        return dtype

    @staticmethod
    def layers_alone(inner: Any) -> Iterator[tuple[list[nn.Module], Any]]:
        decoder, expert = inner.paligemma.model.language_model, inner.gemma_expert.model
        for layers in zip(decoder.layers, expert.layers, strict=True):
            block, own = (SimpleNamespace(layers=[layer], norm=_unchanged, rotary_emb=decoder.rotary_emb) for layer in layers)
            one = SimpleNamespace(
                paligemma=SimpleNamespace(model=SimpleNamespace(language_model=block)), gemma_expert=SimpleNamespace(model=own)
            )
            yield list(layers), one

    @staticmethod
    def final_norms(inner: Any, streams: list[Tensor], call: dict[str, Any]) -> list[Tensor]:
        from lerobot.policies.pi_gemma import layernorm_forward

        norms = inner.paligemma.model.language_model.norm, inner.gemma_expert.model.norm
        conditions = call.get("adarms_cond") or [None, None]
        return [layernorm_forward(norm, stream, cond)[0] for norm, stream, cond in zip(norms, streams, conditions, strict=True)]

    @property
    def inner(self) -> Any:
        return self.policy.model.paligemma_with_expert

    @property
    def vlm(self) -> PaliGemmaForConditionalGeneration:
        vlm: PaliGemmaForConditionalGeneration = self.inner.paligemma
        return vlm

    @property
    def expert(self) -> nn.Module:
        return self.inner.gemma_expert  # type: ignore[no-any-return]

    def expert_layers(self) -> list[nn.Module]:
        return list(self.expert.model.layers)  # type: ignore[union-attr,arg-type]

    def resized(self, images: Tensor) -> Tensor:
        from lerobot.policies.common.vla_utils import resize_with_pad_torch

        return resize_with_pad_torch(images.permute(0, 2, 3, 1), *self.policy.config.image_resolution).permute(0, 3, 1, 2)

    def prefix_forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Taps:
        present = torch.ones(len(images), dtype=torch.bool, device=images.device)
        return self._prefix([self.resized(images) * 2 - 1], [present], tokens, token_mask)

    def batch_prefix(self, batch: dict[str, Any]) -> Taps:
        from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

        images, present = self.policy._preprocess_images(batch)  # noqa: SLF001
        return self._prefix(images, present, batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK])

    def _prefix(self, images: list[Tensor], present: list[Tensor], tokens: Tensor, token_mask: Tensor) -> Taps:
        from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

        model = self.policy.model
        decoder: Any = decoder_of(self.vlm)
        decoder.config._attn_implementation = "eager"  # noqa: SLF001  # as lerobot does where it samples
        with self.taps() as taps:
            embeddings, padding, blocks = model.embed_prefix(images, present, tokens, token_mask)
            model.paligemma_with_expert(
                attention_mask=prepare_attention_masks_4d(make_att_2d_masks(padding, blocks)),
                position_ids=torch.cumsum(padding, dim=1) - 1,
                past_key_values=None,
                inputs_embeds=[embeddings.to(decoder_dtype(self.vlm)), None],
                use_cache=False,
            )
        return taps

    @property
    def _bos(self) -> int | None:
        return BOS


def _unchanged(stream: Tensor, cond: Tensor | None = None) -> tuple[Tensor, None]:  # noqa: ARG001
    """In a norm's place."""
    return stream, None
