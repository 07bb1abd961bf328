"""lerobot's SmolVLA: SmolVLM2, possibly cut, beside a thin expert; the state is the prefix's last token."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.errors import UserError
from vla_tune.policies.base import PolicyAdapter
from vla_tune.vlm.parts import Taps

if TYPE_CHECKING:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from transformers import SmolVLMForConditionalGeneration


class SmolVLAAdapter(PolicyAdapter):
    """`policy.type=smolvla`."""

    policy_type: ClassVar[str] = "smolvla"
    vlm_prefix: ClassVar[str] = "model.vlm_with_expert.vlm."
    text_steps: ClassVar[tuple[str, ...]] = ("NewLineTaskProcessorStep", "TokenizerProcessorStep")
    changeable: ClassVar[frozenset[str]] = frozenset(
        ("n_action_steps", "freeze_vision_encoder", "train_expert_only", "train_state_proj", "num_steps", "tokenizer_max_length")
    )

    without_weights: ClassVar[dict[str, Any]] = {"load_vlm_weights": False}
    kept: ClassVar[tuple[str, ...]] = ("eager_attention_forward",)
    """It multiplies queries and keys in float32."""

    policy: SmolVLAPolicy

    @classmethod
    def policy_class(cls) -> type[SmolVLAPolicy]:
        from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

        return SmolVLAPolicy

    @classmethod
    def vlm_name(cls, config: SmolVLAConfig) -> str:
        return config.vlm_model_name

    @classmethod
    def vlm_settings(cls, vlm: str) -> dict[str, Any]:
        return {"vlm_model_name": vlm}

    @classmethod
    def load(cls, path: str, config: SmolVLAConfig) -> SmolVLAPolicy:
        return cls.policy_class().from_pretrained(path, config=config, strict=True)

    def put_vlm(self, state: dict[str, Tensor]) -> None:
        """lerobot's own loading would round the weights to bfloat16, so the policy is made without and they are copied in."""
        self.policy.float()
        kept = set(self.vlm.state_dict())
        self.vlm.load_state_dict({name: tensor for name, tensor in state.items() if name in kept}, strict=True)

    def keeps_types(self, vlm: str) -> bool:
        """lerobot builds parts of the VLM in its configuration's type, and bfloat16 would round what was trained."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(vlm).dtype in (None, torch.float32)

    def freeze_as_configured(self) -> None:
        inner = self.inner
        self._thaw(inner)
        inner.set_requires_grad()
        self.policy.model.set_requires_grad()

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        """lerobot divides by how many actions of the batch are no padding."""
        if "action_is_pad" not in batch:
            return super().loss_weight(batch)
        return (~batch["action_is_pad"]).sum().float()

    def lerobot_dtype(self) -> torch.dtype:
        """The VLM's own, or bfloat16 where lerobot is told to load the VLM's weights; the expert's is the VLM's."""
        if self.policy.config.load_vlm_weights:
            return torch.bfloat16
        return self.inner.config.get_text_config().dtype or torch.float32  # type: ignore[no-any-return]

    @staticmethod
    def layers_alone(inner: Any) -> Iterator[tuple[list[nn.Module], Any]]:
        as_is = SimpleNamespace(norm=nn.Identity())
        layers = inner.get_model_layers([inner.get_vlm_model().text_model, inner.lm_expert])
        for number, (block, expert) in enumerate(zip(*layers, strict=True)):
            every = inner.self_attn_every_n_layers
            crosses = "cross" in inner.attention_mode and not (every > 0 and number % every == 0)
            one = SimpleNamespace(
                vlm=inner.vlm,
                get_vlm_model=lambda: SimpleNamespace(text_model=as_is),
                lm_expert=as_is,
                num_vlm_layers=1,
                get_model_layers=lambda _models, block=block, expert=expert: [[block], [expert]],
                attention_mode="cross_attn" if crosses else "self_attn",
                self_attn_every_n_layers=0,
                forward_attn_layer=inner.forward_attn_layer,
                forward_cross_attn_layer=inner.forward_cross_attn_layer,
            )
            yield [block] if expert is None else [block, expert], one

    @staticmethod
    def final_norms(inner: Any, streams: list[Tensor], call: dict[str, Any]) -> list[Tensor]:  # noqa: ARG004
        vlm, expert = streams
        return [inner.get_vlm_model().text_model.norm(vlm), inner.lm_expert.norm(expert)]

    @property
    def inner(self) -> Any:
        return self.policy.model.vlm_with_expert

    @property
    def vlm(self) -> SmolVLMForConditionalGeneration:
        vlm: SmolVLMForConditionalGeneration = self.inner.vlm
        return vlm

    @property
    def expert(self) -> nn.Module:
        return self.inner.lm_expert  # type: ignore[no-any-return]

    def resized(self, images: Tensor) -> Tensor:
        from lerobot.policies.common.vla_utils import resize_with_pad

        if self.policy.config.resize_imgs_with_padding is None:
            raise UserError("policy.settings.resize_imgs_with_padding=null: pictures of different sizes need one that all are brought to")
        width, height = self.policy.config.resize_imgs_with_padding
        return resize_with_pad(images, height, width, pad_value=0)

    def prefix_forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Taps:
        config = self.policy.config
        if config.resize_imgs_with_padding is not None:
            images = self.resized(images)
        batch = images.shape[0]
        present = torch.ones(batch, dtype=torch.bool, device=images.device)
        state = torch.zeros(batch, config.max_state_dim, device=images.device)  # the mean state; nothing attends to it
        return self._prefix([images * 2 - 1], [present], tokens, token_mask, state)

    def batch_prefix(self, batch: dict[str, Any]) -> Taps:
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
            model.vlm_with_expert(
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

    def _text(self, blocks: Tensor, tokens: Tensor) -> slice:
        """Last, before the state, which opens an attention block; the prefix may be padded behind that."""
        padded = self.policy.model.prefix_length > 0
        state = int(blocks[0].int().argmax()) if padded else blocks.shape[1] - 1  # to look would wait for the device
        return slice(state - tokens.shape[1], state)
