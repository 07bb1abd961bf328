"""Closed loop for real, with a policy whose action expert was never trained."""

import functools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vla_tune.artifacts.folder import read_artifact
from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.simulators.actor import Actor
from vla_tune.simulators.chunks import ChunkedWorld
from vla_tune.simulators.episodes import Episode, plan
from vla_tune.simulators.metaworld import Metaworld
from vla_tune.simulators.noise import call_noise
from vla_tune.simulators.runner import Runner
from vla_tune.stages import eval_rollout
from vla_tune.stats.intervals import mean_rate, wilson


@pytest.fixture(scope="module")
def actor(policy_folder, config_of):
    opened, size = eval_rollout.open_actor(config_of(), str(policy_folder), Metaworld())
    assert size == 64
    return opened


class Recording:
    """An actor that keeps what it is asked and what it answers, by episode and call."""

    def __init__(self, actor):
        self.actor, self.batches, self.actions = actor, [], {}

    def __call__(self, observations, instructions, calls):
        self.batches.append(len(calls))
        actions = self.actor(observations, instructions, calls)
        self.actions.update(zip(calls, actions, strict=True))
        return actions


def maker(task, step_limit=12, image_size=64):
    return functools.partial(ChunkedWorld, Metaworld().maker(task, image_size=image_size, step_limit=step_limit), step_limit)


def run(actor, parallel, *, processes=False):
    episodes, ended = plan({"reach-v3": "Reach a goal position", "drawer-close-v3": "Push and close a drawer"}, 5, 10_000, 0), []
    recording = Recording(actor)
    Runner(recording, maker, parallel=parallel, processes=processes).run(episodes, ended.append)
    assert sorted(map(id, ended)) == sorted(map(id, episodes))
    return recording, [episode.row() for episode in episodes]


def test_an_episode_does_not_depend_on_its_batch(actor):
    alone, rows = run(actor, 1)
    together, other_rows = run(actor, 4)
    assert set(alone.batches) == {1}
    assert max(together.batches) == 4
    assert alone.actions.keys() == together.actions.keys()
    for call, actions in alone.actions.items():
        assert actions.shape == (4, 4)
        np.testing.assert_allclose(actions, together.actions[call], atol=1e-3)
    for row, other in zip(rows, other_rows, strict=True):
        assert {**row, "return": pytest.approx(row["return"], rel=1e-3)} == other


def test_the_same_seed_gives_the_same_result(actor):
    (first, rows), (second, other_rows) = run(actor, 4), run(actor, 4)
    assert rows == other_rows
    assert all(np.array_equal(first.actions[call], second.actions[call]) for call in first.actions)


def test_worlds_in_processes_of_their_own_give_the_same(actor):
    (here, rows), (there, other_rows) = run(actor, 2), run(actor, 2, processes=True)
    assert rows == other_rows
    assert all(np.array_equal(here.actions[call], there.actions[call]) for call in here.actions)


def test_actions_are_those_of_lerobots_own_loop(actor):
    """One world, lerobot's `select_action` with the same noise: the same actions as ours."""
    from lerobot.envs import preprocess_observation

    from vla_tune.simulators.metaworld.world import FastMetaworldEnv

    env = FastMetaworldEnv("reach-v3", obs_type="pixels_agent_pos", observation_width=64, observation_height=64)
    observation, _ = env.reset(seed=10_000)
    policy = actor._policy
    ours = actor([observation], [env.task_description], [("reach-v3", 10_000, 0)])[0]
    policy.reset()
    for step in range(4):
        batch = actor._before({**preprocess_observation({k: v[None] for k, v in observation.items()}), "task": [env.task_description]})
        noise = call_noise("reach-v3", 10_000, 0, (policy.config.chunk_size, policy.config.max_action_dim))[None]
        action = actor._after(policy.select_action(batch, noise=noise))[0].numpy()
        assert np.array_equal(action, ours[step])
        observation = env.step(action)[0]


def test_noise_follows_from_episode_and_call():
    shape = (16, 4)
    one = call_noise("reach-v3", 10_000, 0, shape)
    torch.manual_seed(5)
    assert torch.equal(one, call_noise("reach-v3", 10_000, 0, shape))
    others = [
        call_noise("reach-v3", 10_000, 1, shape),
        call_noise("reach-v3", 10_001, 0, shape),
        call_noise("door-open-v3", 10_000, 0, shape),
    ]
    assert not any(torch.equal(one, other) for other in others)


def test_episodes_are_dealt_evenly_on_their_own_seeds():
    episodes = plan({"a": "do a", "b": "do b", "c": "do c"}, 7, 10_000, 2)
    assert [episode.task for episode in episodes] == ["a", "b", "c"] * 2 + ["a"]
    assert [episode.seed for episode in episodes if episode.task == "a"] == [10_000, 10_001, 10_002]
    assert [episode.recorded for episode in episodes] == [True, True] + [False] * 5
    assert len({(episode.task, episode.seed) for episode in episodes}) == 7
    assert all(episode.instruction == f"do {episode.task}" for episode in episodes)


def test_the_expert_succeeds_in_our_loop():
    """The loop itself loses nothing: the scripted expert as the policy, one action a call."""
    worlds = []

    def make_world(task):
        def make():
            worlds.append(Metaworld().maker(task, image_size=16, step_limit=150)())
            return worlds[-1]

        return functools.partial(ChunkedWorld, make, 150)

    def expert(observations, instructions, calls):
        return np.float32(np.clip([worlds[0].expert_policy.get_action(worlds[0].raw_observation)], -1, 1))[:, None]

    episodes = plan({"drawer-close-v3": ""}, 1, 10_000, 1)
    Runner(expert, make_world, parallel=1, processes=False).run(episodes, lambda episode: None)
    assert episodes[0].success
    assert 1 < episodes[0].steps < 150
    assert episodes[0].total_reward > 0
    assert len(episodes[0].frames) == (episodes[0].steps + 1) // 2 + 1


def test_the_stage_writes_its_artifact(config_of, tmp_path, capsys):
    config = config_of()
    artifact = eval_rollout.run(config, tmp_path)
    assert read_artifact(tmp_path / "eval-rollout", "eval-rollout", "").digest == artifact.digest
    rows = pq.read_table(artifact.path / "episodes.parquet").to_pylist()
    assert list(rows[0]) == ["task", "instruction", "seed", "success", "steps", "return"]
    assert [row["task"] for row in rows] == ["reach-v3", "drawer-close-v3"] * 2 + ["reach-v3"]
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["success"].keys() == {"value", "low", "high"}
    assert {task: row["episodes"] for task, row in report["by_task"].items()} == {"reach-v3": 3, "drawer-close-v3": 2}
    assert (report["n_action_steps"], report["step_limit"]) == (4, 12)
    assert report["language_probe"] is None
    assert not (artifact.path / "probe.parquet").exists()
    assert report["versions"].keys() == {"lerobot", "metaworld", "mujoco", "torch"}
    assert artifact.metrics.keys() == {"success", "low", "high", "episodes", "mean_steps", "episodes_per_minute"}
    assert artifact.metrics["success"] == sum(row["success"] for row in rows) / 5
    assert "closed-loop success" in capsys.readouterr().out
    (video,) = (artifact.path / "videos").iterdir()
    check_video(video)
    with pytest.raises(UserError, match="--overwrite"):
        eval_rollout.run(config, tmp_path)


def test_groups_are_reported_with_their_mean(config_of, tmp_path, capsys):
    """Meta-World's figure is the mean of the difficulties, not of the tasks."""
    artifact = eval_rollout.run(config_of("rollout.tasks=[reach-v3,touch-red,touch-blue]", "rollout.videos=0"), tmp_path)
    report = json.loads((artifact.path / "report.json").read_text())
    assert {name: group["episodes"] for name, group in report["by_group"].items()} == {"easy": 2, "touch": 3}
    assert report["mean_of_groups"] == mean_rate([wilson(0, 2), wilson(0, 3)])
    assert "mean of groups" in capsys.readouterr().out


def test_mt50_is_its_four_difficulties():
    _, tasks = eval_rollout.check_rollout(
        load_config("demo", ["rollout.tasks=[easy,medium,hard,very_hard]", "rollout.step_limit=500"]).rollout
    )
    assert [sum(Metaworld().group(task) == name for task in tasks) for name in ("easy", "medium", "hard", "very_hard")] == [28, 11, 6, 5]


def test_the_language_probe_runs_the_same_episodes_under_other_instructions(config_of, tmp_path, capsys, monkeypatch):
    heard = []
    act = Actor.__call__

    def listen(self, observations, instructions, calls):
        heard.extend((told, *call) for told, call in zip(instructions, calls, strict=True))
        return act(self, observations, instructions, calls)

    monkeypatch.setattr(Actor, "__call__", listen)
    config = config_of("rollout.tasks=[touch-red,touch-blue]", "rollout.episodes=3", "rollout.probe=2")
    artifact = eval_rollout.run(config, tmp_path)
    rows = pq.read_table(artifact.path / "probe.parquet").to_pylist()
    assert list(rows[0]) == ["given", "task", "instruction", "seed", "success", "steps", "return", "touched"]
    assert [(row["given"], row["task"], row["seed"]) for row in rows] == [
        (given, task, 10_000) for given in ("right", "swapped", "empty") for task in ("touch-red", "touch-blue")
    ]
    assert {row["instruction"] for row in rows if row["given"] == "empty"} == {""}
    first_calls = {told for told, task, seed, call in heard if (task, seed, call) == ("touch-red", 10_000, 0)}
    assert first_calls == {row["instruction"] for row in rows if row["task"] == "touch-red"}
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["episodes"] == pq.read_table(artifact.path / "episodes.parquet").num_rows == 3
    assert {given: rate["episodes"] for given, rate in report["language_probe"].items()} == dict.fromkeys(
        ("right", "swapped", "empty", "followed"), 2
    )
    assert "language probe" in capsys.readouterr().out


def check_video(file):
    import av

    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 256, 256)
        assert len(list(container.decode(stream))) > 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.tasks=[reach-v4]", "did you mean 'reach-v3'"),
        ("rollout.tasks=[reach-v3,reach-v3]", "twice"),
        ("rollout.step_limit=501", "after 500 steps"),
        ("rollout.first_seed=999999", "demonstrations"),
        ("rollout.tasks=[easy,reach-v3]", "'reach-v3' is there twice"),
        ("rollout.n_action_steps=17", "chunk_size=16"),
        ("train.path=/nowhere/policy", "/nowhere/policy"),
    ],
)
def test_wrong_settings(config_of, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        eval_rollout.run(config_of(override), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_train_artifact_the_command_is_named(tmp_path):
    with pytest.raises(UserError, match=r"vla-tune train demo --out .*"):
        eval_rollout.run(load_config("demo"), tmp_path)


def test_a_policy_that_reads_other_pictures_is_refused(policy_folder, tmp_path, config_of):
    for file in policy_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("observation.image", "observation.images.wrist"))
    with pytest.raises(UserError, match=r"does not read 'observation.image'.*observation.images.wrist"):
        eval_rollout.open_policy(config_of(), str(tmp_path), Metaworld())


def test_tasks_that_share_an_instruction_are_told(config_of, capsys):
    eval_rollout.check_rollout(config_of("rollout.tasks=[push-v3,push-back-v3]").rollout)
    assert "push-v3 and push-back-v3 share one instruction" in capsys.readouterr().err


def test_interrupted_before_the_first_episode_ended_nothing_is_left(config_of, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Actor, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        eval_rollout.run(config_of(), tmp_path)
    assert not list(tmp_path.iterdir())


def interrupted(config, folder, monkeypatch, calls):
    """Run the stage until the policy was called so often."""
    act, seen = Actor.__call__, []

    def until(self, observations, instructions, called):
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(called)
        return act(self, observations, instructions, called)

    with monkeypatch.context() as patch:
        patch.setattr(Actor, "__call__", until)
        with pytest.raises(KeyboardInterrupt):
            eval_rollout.run(config, folder)


def test_an_interrupted_stage_goes_on_after_its_last_episode(config_of, tmp_path, monkeypatch, capsys):
    config = config_of("rollout.parallel=2", "rollout.probe=1")
    whole = eval_rollout.run(config, tmp_path / "whole")
    interrupted(config, tmp_path / "parts", monkeypatch, 4)  # of three calls an episode
    partial = tmp_path / "parts" / "eval-rollout.partial"
    assert "2 episodes are done and kept;" in capsys.readouterr().err
    rows = partial / "episodes.jsonl"
    assert len(rows.read_text().splitlines()) == 2
    rows.write_text(rows.read_text() + '{"task": "reach-v')  # cut off by a crash
    parts = eval_rollout.run(config, tmp_path / "parts")
    assert "going on after 2 episodes" in capsys.readouterr().out
    assert {file.name for file in parts.path.rglob("*")} == {file.name for file in whole.path.rglob("*")}
    for name in ("episodes.parquet", "probe.parquet"):
        expected = pq.read_table(whole.path / name).to_pylist()
        expected = [{**row, "return": pytest.approx(row["return"], rel=1e-3)} for row in expected]  # other batches
        assert pq.read_table(parts.path / name).to_pylist() == expected
    assert not partial.exists()


def test_what_other_settings_left_is_dropped(config_of, tmp_path, monkeypatch, capsys):
    interrupted(config_of(), tmp_path, monkeypatch, 4)
    artifact = eval_rollout.run(config_of("rollout.first_seed=20000", "rollout.videos=0"), tmp_path)
    assert "are dropped" in capsys.readouterr().err
    rows = pq.read_table(artifact.path / "episodes.parquet").to_pylist()
    assert sorted({row["seed"] for row in rows}) == [20_000, 20_001, 20_002]
    assert not list((artifact.path / "videos").iterdir())


def test_an_episode_starts_empty():
    assert Episode("reach-v3", 1, "reach").row()["success"] is False
