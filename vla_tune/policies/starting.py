"""The policy that training starts from, opened for what is measured before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import UserError
from vla_tune.policies import adapt, adapter_class
from vla_tune.policies.loading import check_device, load_policy, new_policy, vlm_source

if TYPE_CHECKING:
    from lerobot.configs import PolicyFeature
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.config import Config


def starting_policy(config: Config) -> tuple[PreTrainedPolicy, str]:
    """The policy that training starts from, in evaluation mode, and its base VLM (Hub id or folder).

    Without `policy.path` it is a new action expert on the base VLM. Its features matter to the expert alone, and no
    token of the prefix attends to that.
    """
    named = config.policy.base_vlm
    check_device(config.device)
    if config.policy.path is not None:
        policy = load_policy(config.policy.path, device=config.device)
        return policy.eval(), vlm_source(named or adapt(policy).vlm_name(policy.config))
    if named is None:
        raise UserError(
            "policy.path or policy.base_vlm must be set: there is no VLM to take an anchor of (`demo` is the one that is shipped)"
        )
    kind = adapter_class(config.policy.type)
    policy = new_policy(kind, vlm_source(named), {**config.policy.settings, "device": config.device}, _any_features())
    return policy.to(config.device).eval(), vlm_source(named)


def _any_features() -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (1,)),
    }
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (1,))}
