"""What the rest of the package may know of a lerobot policy: one small adapter a policy type, behind this interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

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

    # The VLM.

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

    @staticmethod
    def _text(blocks: Tensor, tokens: Tensor) -> slice:
        """Where the text stands in the prefix."""
        return slice(blocks.shape[1] - tokens.shape[1], blocks.shape[1])
