"""The policy that training starts from, opened for what is measured before."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vla_tune.errors import UserError
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.devices import check_device
from vla_tune.policies.loading import load_policy, new_policy
from vla_tune.vlm.loading import vlm_source

if TYPE_CHECKING:
    from lerobot.configs import PolicyFeature
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.config import Config, PolicyConfig


def starting_policy(config: Config) -> tuple[PreTrainedPolicy, str]:
    """The policy that training starts from, in evaluation mode, and its base VLM (Hub id or folder).

    Without `policy.path` it is a new action expert on the base VLM. Its features matter to the expert alone, and no
    token of the prefix attends to that.
    """
    named = config.policy.base_vlm
    check_device(config.device)
    if config.policy.path is not None:
        policy = load_start(config.policy, config.device)
        return policy.eval(), vlm_source(named or adapt(policy).vlm_name(policy.config))
    if named is None:
        raise UserError(
            "policy.path or policy.base_vlm must be set: there is no VLM to take an anchor of (`demo` is the one that is shipped)"
        )
    kind = adapter_class(config.policy.type)
    policy = new_policy(kind, vlm_source(named), {**config.policy.settings, "device": config.device}, _any_features())
    return policy.to(config.device).eval(), vlm_source(named)


def load_start(config: PolicyConfig, device: str) -> PreTrainedPolicy:
    """The policy at `policy.path`, with `policy.settings` put over its own.

    Raises:
        UserError: it cannot be opened, or a setting shapes its weights, which cannot be changed any more.

    """
    policy = load_policy(str(config.path), device=device)
    adapter = adapt(policy)
    for key, value in config.settings.items():
        if key not in {f.name for f in dataclasses.fields(policy.config)}:
            raise UserError(f"policy.settings.{key}: lerobot's {type(policy.config).__name__} has no such field")
        if value == getattr(policy.config, key) or (isinstance(value, list) and tuple(value) == getattr(policy.config, key)):
            continue
        if key not in adapter.changeable:
            raise UserError(f"policy.settings.{key}={value}: the policy at policy.path was made with {getattr(policy.config, key)}")
        setattr(policy.config, key, value)
    adapter.obey_settings()
    return policy


def _any_features() -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (1,)),
    }
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (1,))}
