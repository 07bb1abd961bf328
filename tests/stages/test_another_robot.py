"""Fine-tuning a policy on a robot that it was not made for: other cameras' names, another number of joints."""

import json

import numpy as np
import pytest
import torch

from vla_tune.errors import UserError
from vla_tune.policies.loading import load_policy, load_processors, renamed
from vla_tune.stages import eval_rollout, train


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Three joints where the policy has four, and a camera of another name."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("data") / "other"
    joints = {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]}
    camera = {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features = {"observation.images.top": camera, "observation.state": joints, "action": joints}
    dataset = LeRobotDataset.create("local/other", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(1)
    for _ in range(3):
        for _ in range(8):
            numbers = {key: rng.uniform(-1, 1, 3).astype(np.float32) for key in ("observation.state", "action")}
            picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            dataset.add_frame({"observation.images.top": picture, **numbers, "task": "Wave"})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture
def moved_on(small_config, other, trained):
    """A function from further overrides to the configuration that goes on from a finished run."""
    start = f"policy.path={trained(small_config('train.steps=1')) / 'train' / 'policy'}"
    data = ["data.repo_id=local/other", f"data.root={other}", "data.heldout=0.4", "policy.settings={}", "train.steps=1"]
    return lambda *more: small_config(start, *data, "rollout.tasks=[]", "rollout.n_action_steps=2", *more)


def test_names_are_translated_and_shapes_are_the_datasets(moved_on, tmp_path):
    config = moved_on("data.rename={observation.images.top: observation.image}")
    train.run(config, tmp_path / "second")
    policy = load_policy(str(tmp_path / "second" / "train" / "policy"))
    assert policy.config.output_features["action"].shape == (3,)
    assert policy.config.input_features["observation.state"].shape == (3,)
    before, after = load_processors(policy, str(tmp_path / "second" / "train" / "policy"))
    assert renamed(before) == {"observation.images.top": "observation.image"}
    inputs = before({"observation.images.top": torch.rand(1, 3, 64, 64), "observation.state": torch.rand(1, 3), "task": ["Wave"]})
    assert after(policy.predict_action_chunk(inputs)).shape == (1, 4, 3)

    eval_rollout.run(config, tmp_path / "second")
    offline = json.loads((tmp_path / "second" / "eval-rollout" / "report.json").read_text())["offline"]
    assert list(offline["by_joint"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], r"which the policy lacks; it reads 'observation\.image': say which is which with data\.rename"),
        (
            ["data.rename={observation.images.tip: observation.image}"],
            r"no 'observation\.images\.tip'; did you mean 'observation\.images\.top'",
        ),
        (["data.rename={observation.images.top: observation.imge}"], r"reads no 'observation\.imge'; did you mean 'observation\.image'"),
    ],
)
def test_wrong_names_are_told(moved_on, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        train.run(moved_on(*more), tmp_path / "second")


def test_a_wider_robot_than_the_policy_is_told(moved_on, tmp_path):
    from vla_tune.data.demonstrations import adopt_shapes, dataset_metadata

    config = moved_on()
    policy = load_policy(config.policy.path).config
    policy.max_action_dim = 2
    with pytest.raises(UserError, match=r"'action' of 3 numbers, the policy takes 2"):
        adopt_shapes(dataset_metadata(config.data), policy, {})
