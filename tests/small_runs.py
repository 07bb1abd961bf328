"""A small dataset and the settings that make a run on it quick, for fixtures and for programs that tests start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from vla_tune.resources import resource

FRAMES = 30
"""Of `write_dataset`'s episodes together: an epoch."""
DRAWN = ("invented-shapes", "invented-shapes-again", "invented-shapes-mirrored", "invented-textures", "drawn-signs")


def write_dataset(root: Path) -> Path:
    """Two tasks, three episodes of 9 to 11 frames of noise, written by lerobot's own writer."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.image": {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
    }
    dataset = LeRobotDataset.create("local/small", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for episode in range(3):
        for _ in range(9 + episode):
            frame = {
                "observation.image": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                "observation.state": rng.normal(size=4).astype(np.float32),
                "action": rng.uniform(-1, 1, 4).astype(np.float32),
                "task": ("Open a drawer", "Press a button")[episode % 2],
            }
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return root


def demo_overrides(dataset: Path) -> list[str]:
    """The demo pipeline cut down: small data, few steps, little evaluation."""
    return [
        "method.name=full",
        "data.manifest=null",
        "data.repo_id=local/small",
        f"data.root={dataset}",
        "policy.settings.chunk_size=4",
        "policy.settings.n_action_steps=2",
        "train.steps=4",
        "train.lr=1e-3",
        "train.batch_size=4",
        "train.log_every=1",
        "train.checkpoint_every=2",
        "train.warmup_steps=1",
        "anchor.samples=8",
        "anchor.batch_size=4",
    ]


def write_manifests(folder: Path, train: int = 12, test: int = 4) -> Path:
    """The shipped manifests of drawn pictures under their names, each with so many pictures of a class."""
    folder.mkdir(exist_ok=True)
    for name in DRAWN:
        manifest = yaml.safe_load(resource("data_manifests", f"{name}.yaml").read_text())
        (folder / name).write_text(yaml.safe_dump({**manifest, "per_class": {"train": train, "test": test}}))
    return folder
