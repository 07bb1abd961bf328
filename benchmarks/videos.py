"""A small dataset of videos to read: a real robot's where it is at hand, else one that lerobot's writer makes."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

REAL = Path(os.environ.get("VLA_TUNE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data") / "robot_g1_bottle_v21_2ep.tar"
"""Two episodes of a Unitree G1, as they were published."""


def video_dataset(folder: Path) -> tuple[Path, str]:
    """The root of a LeRobotDataset under `folder`, and what it is."""
    return (_converted(folder), "two real episodes") if REAL.is_file() else (_made(folder / "made"), "drawn episodes")


def _converted(folder: Path) -> Path:
    """lerobot's own converter brings the recording to today's format."""
    with tarfile.open(REAL) as packed:
        packed.extractall(folder, filter="data")
    root = folder / "g1_bottle"
    program = "lerobot.scripts.convert_dataset_v21_to_v30"
    command = [sys.executable, "-m", program, "--repo-id=local/g1", f"--root={root}", "--push-to-hub=false"]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
    return root


def _made(root: Path) -> Path:
    """Four episodes of 100 frames, two cameras of 320 x 240."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    os.environ.setdefault("SVT_LOG", "1")  # the encoder tells errors alone
    cameras = ("observation.images.front", "observation.images.wrist")
    numbers = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]}
    video = {"dtype": "video", "shape": (240, 320, 3), "names": ["height", "width", "channels"]}
    features = {**dict.fromkeys(cameras, video), "observation.state": numbers, "action": numbers}
    dataset = LeRobotDataset.create("local/made", fps=10, features=features, root=root, use_videos=True)
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    for _ in range(4):
        for number in range(100):
            frame = {key: rng.normal(size=4).astype(np.float32) for key in ("observation.state", "action")}
            pictures = {key: np.roll(background, 3 * number, axis=1) for key in cameras}
            dataset.add_frame({**frame, **pictures, "task": "Look to the left"})
        dataset.save_episode()
    dataset.finalize()
    return root
