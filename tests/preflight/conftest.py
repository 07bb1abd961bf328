"""Small datasets with one thing that is odd, and policies' configurations without weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from vla_tune.data.features import policy_features
from vla_tune.policies import adapter_class
from vla_tune.policies.loading import new_config
from vla_tune.resources import demo_vlm

sys.path.insert(0, str(Path(__file__).parent))
from odd import CAMERA, FRONT, vector


@pytest.fixture(scope="session")
def plain():
    """The features of a dataset that nothing is odd with."""
    return {FRONT: CAMERA, "observation.state": vector(4), "action": vector(4)}


@pytest.fixture(scope="session")
def policy_of():
    """A function from features, or from lerobot's inputs and outputs, to a new policy's configuration."""

    def make(features, kind="smolvla", **settings):
        made = features if isinstance(features, tuple) else policy_features(features)
        return new_config(adapter_class(kind), str(demo_vlm()) if kind == "smolvla" else "", settings, made)

    return make


@pytest.fixture(scope="session")
def written():
    """A function that writes episodes of noise by lerobot's own writer; `edit(frame, episode, step)` changes a frame before."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def write(root, features, episodes=3, frames=4, edit=None):
        videos = any(feature["dtype"] == "video" for feature in features.values())
        dataset = LeRobotDataset.create("local/odd", fps=10, features=features, root=root, use_videos=videos, video_backend="pyav")
        random = np.random.default_rng(0)
        for episode in range(episodes):
            for step in range(frames):
                frame = {key: _values(feature, random) for key, feature in features.items()}
                if edit:
                    edit(frame, episode, step)
                dataset.add_frame({**frame, "task": ("Push the red cube", "Open the drawer")[episode % 2]})
            dataset.save_episode()
        dataset.finalize()
        return root

    return write


def _values(feature, random):
    if feature["dtype"] in ("image", "video"):
        return random.integers(0, 256, feature["shape"], np.uint8)
    if feature["dtype"] == "string":
        return "a note"
    return random.uniform(-3, 3, feature["shape"]).astype(feature["dtype"])
