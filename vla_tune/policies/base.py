"""What the rest of the package may know of a lerobot policy: one small adapter a policy type, behind this interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.policies.checkpointing import layer_by_layer
from vla_tune.policies.flow import drawing, flow_draws, moved
from vla_tune.policies.precision import compute_in
from vla_tune.vlm.checkpointing import checkpoint_blocks
from vla_tune.vlm.parts import Taps, decoder_of, residual_taps, vlm_group_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.pretrained import PreTrainedPolicy
    from transformers import PreTrainedModel


class PolicyAdapter(ABC):
    """One policy's VLM by name and by place. Holds no state of its own.

    policy_type: lerobot's name of the policy type.
    vlm_prefix: what the full names of the VLM's parameters start with.
    text_steps: the class names of the preprocessor's steps that make tokens of an instruction.
    changeable: settings that may be put over those of a loaded policy, because they shape no weight.
    without_weights: settings that keep lerobot from fetching the VLM's weights where the policy's own will be put in.
    tokenizer: the Hub id of the tokenizer that lerobot's code names, where it does.
    """

    policy_type: ClassVar[str]
    vlm_prefix: ClassVar[str]
    text_steps: ClassVar[tuple[str, ...]]
    changeable: ClassVar[frozenset[str]]
    without_weights: ClassVar[dict[str, Any]] = {}
    tokenizer: ClassVar[str | None] = None
    lowered: ClassVar[tuple[str, ...]] = ("embed_image", "forward")
    """The methods of `inner` that compute in what `prepare_forward` says."""
    kept: ClassVar[tuple[str, ...]] = ()
    """The methods of `inner` called from these that lerobot keeps in float32."""

    def __init__(self, policy: PreTrainedPolicy) -> None:
        self.policy = policy

    # Opening and saving.

    @classmethod
    @abstractmethod
    def policy_class(cls) -> type[PreTrainedPolicy]:
        """lerobot's class; its `config_class` is that of the settings."""

    @classmethod
    @abstractmethod
    def vlm_name(cls, config: PreTrainedConfig) -> str:
        """The VLM, Hub id or folder, that a policy says or is known to be made from."""

    @classmethod
    def vlm_settings(cls, vlm: str) -> dict[str, Any]:  # noqa: ARG003
        """The fields of the policy's configuration that name its VLM, if any; the preprocessor then takes its tokenizer from there."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, path: str, config: PreTrainedConfig) -> PreTrainedPolicy:
        """By lerobot's own strict loader; raises what that raises, and RuntimeError where it let weights be missing."""

    @abstractmethod
    def put_vlm(self, state: dict[str, Tensor]) -> None:
        """Copy the base VLM's weights into the policy's."""

    def keeps_types(self, vlm: str) -> bool:  # noqa: ARG002
        """Whether lerobot, told this Hub id, builds the policy in the types that it was trained in."""
        return True

    def as_stock(self) -> AbstractContextManager[None]:
        """The policy laid out as lerobot's loader expects it to have been saved."""
        return nullcontext()

    @abstractmethod
    def freeze_as_configured(self) -> None:
        """Freeze what the policy's configuration says, everything else trains."""

    def _thaw(self, inner: Any) -> None:
        """Everything trains, and lerobot's model of VLM and expert knows what the configuration freezes."""
        self.policy.requires_grad_()
        inner.train_expert_only, inner.freeze_vision_encoder = (
            self.policy.config.train_expert_only,
            self.policy.config.freeze_vision_encoder,
        )

    def obey_settings(self) -> None:
        """Bring a loaded policy to those of its settings that shape no weight: what is frozen, pi0's `gradient_checkpointing`."""
        self.freeze_as_configured()

    # Training.

    def loss(self, batch: dict[str, Any], noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """The policy's own loss of a batch, with this noise and these times of the flow (`flow_draws`), or with lerobot's own draws."""
        with nullcontext() if noise is None or time is None else drawing(self.policy.model, noise, time):
            loss: Tensor = self.policy(batch)[0]
        return loss

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        """What the loss of this batch is a mean over, a float32 scalar on its device; the weight that makes means over parts one mean."""
        actions: Tensor = batch["action"]
        return torch.full((), float(len(actions)), device=actions.device)

    def flow_draws(self, seed: int, step: int, samples: Sequence[int], whole: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Noise `[len(samples), chunk, dim]` and times of these samples of a batch of `whole`: functions of seed, step and sample."""
        shape = (whole, self.policy.config.chunk_size, self.policy.config.max_action_dim)
        noise, time = flow_draws(self.policy.model, seed, step, samples, shape)
        return moved(noise, device), moved(time, device)

    def prepare_forward(self, dtype: torch.dtype = torch.float32, *, checkpointing: bool = False) -> None:
        """What VLM and expert compute in from here on, from float32 weights, and whether their activations are computed again.

        The projections of states, actions and times and the loss stay in float32. A later call takes the place of an earlier one.
        """
        inner = self.inner
        for method in (*self.lowered, *self.kept):
            vars(inner).pop(method, None)
        checkpoint_blocks(self.vlm, on=checkpointing)
        if checkpointing:
            inner.forward = partial(layer_by_layer, inner, self.layers_alone, self.final_norms)
        if dtype != torch.float32:
            for method in self.kept:
                compute_in(inner, method, None)
            for method in self.lowered:
                compute_in(inner, method, dtype)

    def compute_dtype(self, setting: str) -> torch.dtype:
        """What the forward pass computes in by `train.precision`; `auto` is what lerobot builds this policy in, on any device."""
        if setting == "auto":
            return self.lerobot_dtype()
        dtype: torch.dtype = getattr(torch, setting)
        return dtype

    @abstractmethod
    def lerobot_dtype(self) -> torch.dtype:
        """The type in which lerobot builds VLM and expert, and so computes, on any device."""

    @staticmethod
    @abstractmethod
    def layers_alone(inner: Any) -> Iterator[tuple[list[nn.Module], Any]]:
        """Each layer's modules, and a stand-in for `inner` with this layer alone, whose final norms do nothing."""

    @staticmethod
    @abstractmethod
    def final_norms(inner: Any, streams: list[Tensor], call: dict[str, Any]) -> list[Tensor]:
        """`inner`'s final norms of the VLM's and the expert's stream, in a forward pass called with `call`."""

    # The VLM.

    @property
    @abstractmethod
    def inner(self) -> Any:
        """lerobot's model of VLM and expert."""

    @property
    @abstractmethod
    def vlm(self) -> PreTrainedModel:
        """The VLM inside the policy (cut where the policy cuts it)."""

    @property
    @abstractmethod
    def expert(self) -> nn.Module:
        """The action expert's layers, which the prefix never reaches."""

    def expert_layers(self) -> list[nn.Module]:
        """Its transformer blocks."""
        return list(self.expert.layers)  # type: ignore[arg-type]

    def layers(self) -> list[nn.Module]:
        """The VLM's decoder blocks that the policy uses, from the first."""
        return list(decoder_of(self.vlm).layers)  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        table: Any = self.vlm.get_input_embeddings()
        return int(table.weight.shape[1])

    def normed(self, states: Tensor) -> Tensor:
        """The last block's output as the head reads it."""
        out = decoder_of(self.vlm).norm(states)  # type: ignore[operator]
        return out[0] if isinstance(out, tuple) else out

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter once, by the part of the policy it belongs to: `{group: {full name: parameter}}`.

        Groups are `vlm.layers.3`, `vlm.vision` and the like, `expert`, `state_proj`.
        """
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.policy.named_parameters():
            if name.startswith(self.vlm_prefix):
                group = f"vlm.{vlm_group_of(name.removeprefix(self.vlm_prefix))}"
            else:
                group = "state_proj" if ".state_proj." in f".{name}" else "expert"
            groups.setdefault(group, {})[name] = parameter
        return groups

    # The prefix.

    @abstractmethod
    def resized(self, images: Tensor) -> Tensor:
        """Pictures `[batch, 3, height, width]` in 0..1 at the size that the policy looks at; those that have it stay as they are.

        Raises:
            UserError: the policy is set to take pictures as they come.

        """

    @contextmanager
    def taps(self) -> Iterator[Taps]:
        """Record the residual stream and the token mask of the policy's next forward pass on its prefix."""
        taps = Taps()

        def note(present: Tensor, blocks: Tensor, tokens: Tensor) -> None:
            taps.text = self._text(blocks, tokens)
            taps.mask = present & ~blocks.bool()  # neither padding nor a state, which opens an attention block
            if self._bos is not None:
                taps.mask = taps.mask.clone()
                taps.mask[:, taps.text] &= tokens != self._bos

        with self.embedded(note), residual_taps(self.vlm, taps):
            yield taps

    @contextmanager
    def embedded(self, note: Callable[[Tensor, Tensor, Tensor], None]) -> Iterator[None]:
        """Tell `note` of every prefix that the policy embeds in here.

        It is given which tokens are no padding, which open an attention block (both `[batch, tokens]`), and the text's ids.
        """
        model = self.policy.model
        embed_prefix: Callable[..., tuple[Tensor, ...]] = model.embed_prefix

        def noting(images: object, img_masks: object, tokens: Tensor, token_mask: Tensor, **state: Tensor) -> tuple[Tensor, ...]:
            embeddings, present, blocks = embed_prefix(images, img_masks, tokens, token_mask, **state)
            note(present, blocks, tokens)
            return embeddings, present, blocks

        model.embed_prefix = noting
        try:
            yield
        finally:
            del model.embed_prefix

    @abstractmethod
    def prefix_forward(self, images: Tensor, tokens: Tensor, token_mask: Tensor) -> Taps:
        """The policy's own pass over one camera image and a text, as at inference, without the action expert.

        Args:
            images: `[batch, 3, height, width]` in 0..1, resized by the policy's own rule.
            tokens, token_mask: `[batch, length]`, padded on the right.

        """

    @abstractmethod
    def batch_prefix(self, batch: dict[str, Any]) -> Taps:
        """The same pass over the prefix of a batch that the policy's `forward` takes."""

    @property
    @abstractmethod
    def _bos(self) -> int | None:
        """The token that opens a text."""

    def _text(self, blocks: Tensor, tokens: Tensor) -> slice:
        """Where the text stands in the prefix."""
        return slice(blocks.shape[1] - tokens.shape[1], blocks.shape[1])
