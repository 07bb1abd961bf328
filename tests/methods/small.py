"""The smallest real SmolVLA on the VLM that is shipped."""

from __future__ import annotations

SETTINGS = {
    "chunk_size": 4,
    "n_action_steps": 2,
    "num_vlm_layers": 0,
    "train_expert_only": False,
    "resize_imgs_with_padding": (64, 64),
    "max_state_dim": 4,
    "max_action_dim": 4,
}


def features():
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (4,))}
