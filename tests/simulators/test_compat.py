"""`rollout.compat=lerobot-eval` against lerobot's own program."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from vla_tune.errors import UserError
from vla_tune.stages import eval_rollout


def test_it_agrees_with_lerobot_eval_episode_by_episode(policy_folder, config_of, tmp_path):
    """Two batches of two episodes of each of two tasks: the noise of the later ones depends on all that came before."""
    settings = ["rollout.compat=lerobot-eval", "rollout.episodes=8", "rollout.parallel=2", "rollout.videos=0"]
    artifact = eval_rollout.run(config_of(*settings), tmp_path)
    rows = pq.read_table(artifact.path / "episodes.parquet").to_pylist()
    program = [sys.executable, "-m", "lerobot.scripts.lerobot_eval", f"--policy.path={policy_folder}", "--policy.n_action_steps=4"]
    world = ["--env.discover_packages_path=vla_tune.simulators", "--env.type=metaworld_fast", "--env.task=reach-v3,drawer-close-v3"]
    size = ["--env.episode_length=12", "--env.observation_width=64", "--env.observation_height=64"]
    plan = [
        "--eval.n_episodes=4",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        "--seed=10000",
        f"--output_dir={tmp_path / 'theirs'}",
    ]
    subprocess.run([*program, *world, *size, *plan], check=True, capture_output=True)
    theirs = json.loads((tmp_path / "theirs" / "eval_info.json").read_text())
    for task in theirs["per_task"]:
        ours = [row for row in rows if row["task"] == task["task_group"]]
        assert [row["seed"] for row in ours] == [10_000, 10_001, 10_002, 10_003]
        assert [row["success"] for row in ours] == task["metrics"]["successes"]
        assert [row["return"] for row in ours] == pytest.approx(task["metrics"]["sum_rewards"], rel=1e-6)
        assert {row["steps"] for row in ours} == {12}
    assert len(theirs["per_task"]) == 2
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["compat"] == "lerobot-eval"


@pytest.mark.parametrize(
    ("override", "message"),
    [("rollout.episodes=5", "as many of each of the 2 tasks"), ("rollout.probe=1", "has no language probe")],
)
def test_what_lerobot_eval_cannot_do(config_of, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        eval_rollout.run(config_of("rollout.compat=lerobot-eval", "rollout.videos=0", override), tmp_path)
    assert not list(tmp_path.iterdir())
