"""lerobot's pi0.5: the state is written into the instruction, digits among its words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vla_tune.policies.paligemma import PaliGemmaAdapter

if TYPE_CHECKING:
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy


class Pi05Adapter(PaliGemmaAdapter):
    """`policy.type=pi05`."""

    policy_type: ClassVar[str] = "pi05"
    text_steps: ClassVar[tuple[str, ...]] = ("Pi05PrepareStateTokenizerProcessorStep", "TokenizerProcessorStep")

    @classmethod
    def policy_class(cls) -> type[PI05Policy]:
        from lerobot.policies.pi05.modeling_pi05 import PI05Policy

        return PI05Policy
