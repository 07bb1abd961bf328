"""Small policies of every type that has an adapter, each with the VLM that it was made from."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from vla_tune.policies import adapter_class
from vla_tune.policies.loading import new_policy
from vla_tune.resources import demo_vlm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vlas import small_pi

KINDS = ("smolvla", "pi0", "pi05")
SETTINGS = {
    "smolvla": {"num_vlm_layers": 2, "train_expert_only": False, "freeze_vision_encoder": False, "resize_imgs_with_padding": (64, 64)},
    "pi0": {"image_resolution": (56, 56)},
    "pi05": {"image_resolution": (56, 56)},
}
SHARED = {"chunk_size": 4, "n_action_steps": 2, "max_state_dim": 4, "max_action_dim": 4}


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    with small_pi(tmp_path_factory.mktemp("paligemma")) as folder:
        yield folder


@pytest.fixture(scope="module")
def made(paligemma):
    """A function from a policy's type to a new one on its VLM, and that VLM's folder."""
    from lerobot.configs import FeatureType, PolicyFeature

    def features():
        inputs = {
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        }
        return inputs, {"action": PolicyFeature(FeatureType.ACTION, (4,))}

    known = {}

    def make(kind):
        base = str(demo_vlm() if kind == "smolvla" else paligemma)
        if kind not in known:
            torch.manual_seed(0)
            known[kind] = new_policy(adapter_class(kind), base, {**SHARED, **SETTINGS[kind]}, features()).eval()
        return copy.deepcopy(known[kind]), base

    return make


@pytest.fixture(scope="module")
def batch_of():
    """A function from a number of samples to a batch that every small policy's `forward` takes; some actions are padding."""

    def batch(samples, *, seed=0):
        draw = torch.Generator().manual_seed(seed)
        present = torch.ones(samples, 6, dtype=torch.bool)
        present[::2, 4:] = False
        padded = torch.zeros(samples, 4, dtype=torch.bool)
        for sample in range(samples):
            padded[sample, 1 + sample % 4 :] = True
        return {
            "observation.image": torch.rand(samples, 3, 64, 64, generator=draw),
            "observation.state": torch.randn(samples, 4, generator=draw),
            "observation.language.tokens": torch.randint(5, 90, (samples, 6), generator=draw),
            "observation.language.attention_mask": present,
            "action": torch.randn(samples, 4, 4, generator=draw),
            "action_is_pad": padded,
        }

    return batch
