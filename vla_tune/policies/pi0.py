"""lerobot's pi0: the state is the expert's, the prefix holds images and the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vla_tune.policies.paligemma import PaliGemmaAdapter

if TYPE_CHECKING:
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy


class Pi0Adapter(PaliGemmaAdapter):
    """`policy.type=pi0`."""

    policy_type: ClassVar[str] = "pi0"
    text_steps: ClassVar[tuple[str, ...]] = ("Pi0NewLineProcessor", "TokenizerProcessorStep")

    @classmethod
    def policy_class(cls) -> type[PI0Policy]:
        from lerobot.policies.pi0.modeling_pi0 import PI0Policy

        return PI0Policy
