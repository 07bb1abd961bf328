"""A policy to run in closed loop, whose action expert was never trained."""

import pytest
import torch

from vla_tune.config import load_config
from vla_tune.policies.smolvla import SmolVLAAdapter

TASKS = "rollout.tasks=[reach-v3,drawer-close-v3]"


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    """A stock lerobot policy folder on the embedded VLM."""
    from lerobot.configs import FeatureType, PolicyFeature

    from vla_tune.policies.loading import load_processors, new_policy, save_policy
    from vla_tune.resources import demo_vlm

    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    torch.manual_seed(0)
    policy = new_policy(
        SmolVLAAdapter, str(demo_vlm()), load_config("demo").policy.settings, (inputs, {"action": PolicyFeature(FeatureType.ACTION, (4,))})
    )
    unit = {"mean": torch.zeros(4), "std": torch.ones(4)}
    folder = tmp_path_factory.mktemp("policy")
    save_policy(policy, load_processors(policy, stats={"observation.state": unit, "action": unit}), folder, str(demo_vlm()))
    return folder


@pytest.fixture(scope="session")
def config_of(policy_folder):
    """A configuration that runs it for a few steps."""
    small = [
        "device=cpu",
        "rollout.episodes=5",
        "rollout.step_limit=12",
        "rollout.n_action_steps=4",
        "rollout.videos=1",
        "rollout.parallel=4",
    ]
    return lambda *overrides: load_config("demo", [f"train.path={policy_folder}", TASKS, *small, *overrides])
