"""What the rest of the package may know of a lerobot policy; one adapter a policy type."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.policies.base import PolicyAdapter

ENTRY_POINTS = "vla_tune.policies"
"""Where other packages register adapters: the policy's type names a `PolicyAdapter`."""
OWN = {
    "smolvla": "vla_tune.policies.smolvla:SmolVLAAdapter",
    "pi0": "vla_tune.policies.pi0:Pi0Adapter",
    "pi05": "vla_tune.policies.pi05:Pi05Adapter",
}


def adapters() -> dict[str, str]:
    """Where the adapter of each policy type is, `module:class`."""
    return {**{entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}, **OWN}


def adapter_class(kind: str) -> type[PolicyAdapter]:
    """The adapter of a policy type.

    Raises:
        UserError: there is none; the message lists those that there are.

    """
    known = adapters()
    if kind not in known:
        raise UserError(
            f"policy type '{kind}' has no adapter; those that have: {', '.join(sorted(known))}; docs/adapters.md says how to write one"
        )
    module, _, name = known[kind].partition(":")
    adapter: type[PolicyAdapter] = getattr(import_module(module), name)
    return adapter


def adapt(policy: PreTrainedPolicy) -> PolicyAdapter:
    """The adapter of a loaded policy.

    Raises:
        UserError: there is none for this type of policy.

    """
    return adapter_class(policy.config.type)(policy)
