"""Held-out demonstrations in the place of a world: the figures by hand, and the stage on a trained policy."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch

from vla_tune.errors import UserError
from vla_tune.reports.runs import read_run
from vla_tune.reports.tables import moved_table, offline_table
from vla_tune.simulators.offline import Replayed, offline_report, replay
from vla_tune.stages import eval_rollout, train
from vla_tune.stages.eval_offline import swaps


class Recited:
    """A policy that says how long its instruction is, on every joint."""

    config = SimpleNamespace(n_action_steps=2, chunk_size=3, max_action_dim=2, device="cpu")

    def predict_action_chunk(self, batch, noise):
        return torch.tensor([[[float(len(task))] * 2] * 3 for task in batch["task"]]) + 0 * noise


def test_errors_and_moves_by_hand():
    batch = {
        "task": ["ab", "abcd"],
        "episode_index": torch.tensor([5, 7]),
        "frame_index": torch.tensor([0, 2]),
        "action": torch.tensor([[[1.0, 2.0], [1.0, 2.0], [9.0, 9.0]], [[4.0, 0.0], [5.0, 5.0], [5.0, 5.0]]]),
        "action_is_pad": torch.tensor([[False, False, False], [False, True, True]]),
    }
    same = (lambda batch: batch, lambda actions: actions)
    mean = np.array([1.0, 0.0])
    five, seven = replay(Recited(), same, [batch], calls=2, other_instruction={"ab": "abcd", "abcd": "ab"}, mean_action=mean)
    assert (five.episode, five.actions, five.error.tolist(), five.constant.tolist()) == (5, 2, [1, 0], [0, 2])
    assert (seven.episode, seven.actions, seven.error.tolist(), seven.constant.tolist()) == (7, 1, [0, 4], [3, 0])  # one step is padding
    assert {given: moved.tolist() for given, moved in five.moved.items()} == {"swapped": [2, 2], "empty": [2, 2]}
    assert {given: moved.tolist() for given, moved in seven.moved.items()} == {"swapped": [2, 2], "empty": [4, 4]}

    report = offline_report([five, seven], ["x", "y"], seed=0)
    assert report["action_error"]["value"] == pytest.approx((2 * 0.5 + 1 * 2) / 3)
    assert report["by_joint"]["y"]["value"] == pytest.approx((2 * 0 + 1 * 4) / 3)
    assert report["by_joint"]["x"]["constant"] == pytest.approx((2 * 0 + 1 * 3) / 3)
    assert report["action_moved"]["empty"]["value"] == pytest.approx((2 * 2 + 1 * 4) / 3)
    assert report["by_task"]["ab"] == {"value": 0.5, "low": 0.5, "high": 0.5, "episodes": 1}
    assert (report["episodes"], report["actions"]) == (2, 3)


def test_intervals_hold_the_value_and_narrow_with_episodes():
    rng = np.random.default_rng(0)
    many = [Replayed(n, "a", 10, rng.uniform(0, 1, 3), np.ones(3), {}) for n in range(200)]
    few, all_of_them = (offline_report(part, ["x", "y", "z"], seed=0)["action_error"] for part in (many[:10], many))
    assert few["low"] < few["value"] < few["high"]
    assert all_of_them["high"] - all_of_them["low"] < 0.5 * (few["high"] - few["low"])


def test_one_instruction_has_none_to_swap_with():
    assert swaps(["a"]) == {}
    assert swaps(["a", "b", "c"]) == {"a": "b", "b": "c", "c": "a"}


def test_a_robot_without_a_world_is_evaluated_on_its_own_data(small_config, tmp_path):
    config = small_config("rollout.tasks=[]", "data.heldout=0.4", "rollout.n_action_steps=2", "train.steps=2")
    train.run(config, tmp_path)
    artifact = eval_rollout.run(config, tmp_path)
    report = json.loads((tmp_path / "eval-rollout" / "report.json").read_text())
    rows = pyarrow.parquet.read_table(tmp_path / "eval-rollout" / "heldout.parquet").to_pylist()
    assert report["success"] is artifact.metrics["success"] is None
    assert list(report["offline"]["by_joint"]) == ["x", "y", "z", "gripper"]
    assert set(report["offline"]["action_moved"]) == {"swapped", "empty"}
    assert [row["episode"] for row in rows] == [1]  # the middle one of three
    assert report["offline"]["actions"] == rows[0]["actions"] == 10
    assert report["offline"]["action_error"]["value"] == pytest.approx(
        np.mean([rows[0][f"error.{j}"] for j in report["offline"]["by_joint"]])
    )
    run = read_run(tmp_path)
    assert not run.episodes
    assert [row[0].text for row in offline_table(run).rows] == ["x", "y", "z", "gripper", "all"]
    assert len(moved_table(run).rows) == 2


def test_without_a_world_episodes_must_be_left_out(small_config, tmp_path):
    config = small_config("rollout.tasks=[]", "data.heldout=0", "train.steps=1")
    train.run(config, tmp_path)
    with pytest.raises(UserError, match=r"data\.heldout=0\.0: of 3 episodes none is left out"):
        eval_rollout.run(config, tmp_path)
    with pytest.raises(UserError, match=r"data\.heldout=0\.4: the training left out 0\.0"):
        eval_rollout.run(small_config("rollout.tasks=[]", "data.heldout=0.4"), tmp_path)
    assert not (tmp_path / "eval-rollout").exists()
