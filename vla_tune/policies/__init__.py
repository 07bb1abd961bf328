"""What the rest of the package may know of a lerobot policy; one adapter a policy type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.policies.smolvla import SmolVLAAdapter

ADAPTERS = ("smolvla",)


def adapt(policy: PreTrainedPolicy) -> SmolVLAAdapter:
    """The adapter of a loaded policy.

    Raises:
        UserError: there is none for this type of policy; the message lists those that there are.

    """
    from vla_tune.policies.smolvla import SmolVLAAdapter

    if policy.config.type not in ADAPTERS:
        raise UserError(f"policy type '{policy.config.type}' has no adapter; those that have: {', '.join(ADAPTERS)}")
    return SmolVLAAdapter(policy)
