"""LIBERO with real physics: the protocol, a scripted expert, and the stage with worlds in processes of their own."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.simulators import libero
from vla_tune.simulators.chunks import ChunkedWorld
from vla_tune.simulators.libero import Libero
from vla_tune.stages import eval_rollout

SIMULATOR = Libero()
TASK = "libero_object/0"  # pick up the alphabet soup and place it in the basket


def test_suites_stand_for_their_tasks():
    assert SIMULATOR.tasks("libero_goal") == [f"libero_goal/{number}" for number in range(10)]
    assert SIMULATOR.tasks(TASK) == [TASK]
    assert SIMULATOR.group(TASK) == SIMULATOR.scene(TASK) == "libero_object"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.tasks=[libero_objects]"], "did you mean 'libero_object'"),
        (["rollout.tasks=[libero_object/10]"], "libero_object/0 to libero_object/9"),
        (["rollout.tasks=[libero_object, libero_object/3]"], "'libero_object/3' is there twice"),
        (["rollout.tasks=[libero_object, reach-v3]"], "another robot"),
        (["rollout.tasks=[libero_goal]", "rollout.first_seed=0", "rollout.compat=lerobot-eval"], "leave it out"),
        (["rollout.tasks=[libero_object/0]", "rollout.first_seed=45", "rollout.episodes=6"], "seeds up to 50.*tasks have 50"),
    ],
)
def test_a_plan_that_libero_does_not_have(settings, message):
    with pytest.raises(UserError, match=message):
        eval_rollout.check_rollout(load_config("demo", ["rollout.step_limit=null", *settings]).rollout)


def test_without_a_configuration_none_is_asked_for(tmp_path, monkeypatch):
    """LIBERO's own import would ask on the terminal, and write into the home folder."""
    pytest.importorskip("libero")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLA_TUNE_CACHE", str(tmp_path / "cache"))
    file = libero.config_file()
    libero._write_config(file, libero._installed())
    assert file == libero.config_file() == tmp_path / "cache" / "libero" / "config.yaml"
    lines = (tmp_path / "cache" / "libero" / "config.yaml").read_text().splitlines()
    folders = {key: Path(folder) for key, folder in (line.split(": ") for line in lines)}
    assert len(list(folders["init_states"].glob("libero_object/*.pruned_init"))) == 10
    assert len(list(folders["bddl_files"].glob("libero_object/*.bddl"))) == 10
    assert not (tmp_path / "home").exists()


@pytest.fixture(scope="module")
def world(libero_assets):
    made = SIMULATOR.maker(TASK, image_size=64, step_limit=280)()
    yield made
    made.close()


class Expert:
    """Reads the simulation, and carries one object into the basket: above it, down, close, up, over, open."""

    def __init__(self, world, carried="alphabet_soup_1"):
        self.world, self.carried, self.stage, self.waited = world, carried, 0, 0

    def __call__(self):
        inner = self.world._env.env
        at = {name: inner.sim.data.body_xpos[inner.obj_body_id[name]] for name in (self.carried, "basket_1")}
        hand = inner.sim.data.site_xpos[inner.robots[0].eef_site_id]
        high, low = np.array([0, 0, 0.25]), np.array([0, 0, 0.14])
        goals = [
            (at[self.carried] + high, -1),
            (at[self.carried], -1),
            (None, 1),
            (hand * [1, 1, 0] + high, 1),
            (at["basket_1"] + high, 1),
            (at["basket_1"] + low, 1),
            (None, -1),
        ]
        goal, grip = goals[min(self.stage, len(goals) - 1)]
        move = np.zeros(3) if goal is None else goal - hand
        self.waited += 1
        if self.waited > (12 if goal is None else 60) or (goal is not None and np.linalg.norm(move) < 0.012):
            self.stage, self.waited = self.stage + 1, 0
        return np.float32([*np.clip(30 * move, -1, 1), 0, 0, 0, grip])


def run_expert(world, seed, carried):
    """One episode, an action at a time."""

    class Blind(ChunkedWorld):
        def _draw(self, *, wanted):
            super()._draw(wanted=False)  # the expert needs no pictures

    expert, acted = Expert(world, carried), Blind(lambda: world, 180)
    acted.begin(seed, filmed=False)
    outcome = acted.execute(expert()[None])
    while not outcome.done:
        outcome = acted.execute(expert()[None])
    return outcome


def test_the_expert_succeeds_from_several_initial_states(world):
    for seed in (0, 7):
        outcome = run_expert(world, seed, "alphabet_soup_1")
        assert outcome.success
        assert 60 < outcome.steps < 180
        assert outcome.total_reward == 1


def test_another_object_in_the_basket_is_no_success(world):
    outcome = run_expert(world, 0, "cream_cheese_1")
    inner = world._env.env
    cheese, basket = (inner.sim.data.body_xpos[inner.obj_body_id[name]] for name in ("cream_cheese_1", "basket_1"))
    assert np.linalg.norm(cheese[:2] - basket[:2]) < 0.1  # it is in there
    assert (outcome.success, outcome.steps) == (False, 180)


def test_observations_are_lerobots_and_an_episode_follows_from_its_initial_state(world):
    """Though the worlds were used before, and ours draws the last of each three steps alone."""
    from lerobot.envs.libero import LiberoEnv

    theirs = LiberoEnv(
        libero.load_suite("libero_object"),
        0,
        "libero_object",
        obs_type="pixels_agent_pos",
        episode_index=4,
        observation_width=64,
        observation_height=64,
    )
    world.reset(seed=3)
    for seed in (4, 5):
        expected, _ = theirs.reset()
        ours = ChunkedWorld(lambda: world, 280)
        ours.begin(seed, filmed=True)
        actions = np.random.default_rng(seed).uniform(-1, 1, (6, 7)).astype(np.float32)
        for chunk in (actions[:3], actions[3:]):
            assert_same(ours.observe(), expected)
            ours.execute(chunk)
            expected = [theirs.step(action)[0] for action in chunk][-1]
        assert_same(ours.observe(), expected)
    theirs.close()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, dict):
            assert_same(value, theirs[key])
        else:
            assert np.array_equal(value, theirs[key]), key


def test_the_policy_sees_upright_pictures_and_lerobots_state(world):
    from lerobot.envs import preprocess_observation

    world.render_observations = True
    observation, _ = world.reset(seed=1)
    around = SIMULATOR.processor()
    pictures = {name: picture[None] for name, picture in observation["pixels"].items()}
    state = {part: {name: value[None] for name, value in values.items()} for part, values in observation["robot_state"].items()}
    seen = around(preprocess_observation({"pixels": pictures, "robot_state": state}))
    upright = world.render().reshape(64, 4, 64, 4, 3).mean((1, 3))
    picture = 255 * seen["observation.images.image"][0].permute(1, 2, 0).numpy()
    assert np.corrcoef(upright.ravel(), picture.ravel())[0, 1] > 0.9
    assert np.corrcoef(upright[::-1].ravel(), picture.ravel())[0, 1] < 0.6
    assert seen["observation.state"].shape == (1, SIMULATOR.state)
    assert seen.keys() >= set(SIMULATOR.cameras)


def test_the_stage_runs_a_policy_in_two_processes(libero_assets, tmp_path, libero_policy):
    settings = ["rollout.tasks=[libero_object/0, libero_goal/1]", "rollout.episodes=3", "rollout.step_limit=4", "rollout.n_action_steps=2"]
    more = ["rollout.first_seed=0", "rollout.processes=true", "rollout.parallel=2", "rollout.videos=1", f"train.path={libero_policy}"]
    artifact = eval_rollout.run(load_config("demo", settings + more), tmp_path)
    rows = pq.read_table(artifact.path / "episodes.parquet").to_pylist()
    assert [(row["task"], row["seed"], row["steps"], row["success"]) for row in rows] == [
        ("libero_object/0", 0, 4, False),
        ("libero_goal/1", 0, 4, False),
        ("libero_object/0", 1, 4, False),
    ]
    report = json.loads((artifact.path / "report.json").read_text())
    assert {name: group["episodes"] for name, group in report["by_group"].items()} == {"libero_object": 2, "libero_goal": 1}
    assert report["mean_of_groups"]["value"] == 0
    assert report["versions"]["hf-libero"] == "0.1.4"
    assert [file.name for file in (artifact.path / "videos").iterdir()] == ["libero_object-0-seed0-failure.mp4"]
    (given,) = artifact.manifest["inputs"]
    assert given["stage"] == "policy"
    assert given["digest"].startswith("sha256:")


@pytest.fixture(scope="module")
def libero_policy(tmp_path_factory):
    """A stock lerobot policy for LIBERO's robot on the embedded VLM, its action expert untrained."""
    from lerobot.configs import FeatureType, PolicyFeature

    from vla_tune.policies.loading import load_processors, new_policy, save_policy
    from vla_tune.policies.smolvla import SmolVLAAdapter
    from vla_tune.resources import demo_vlm

    pictures = {camera: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for camera in SIMULATOR.cameras}
    inputs = {**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    settings = {**load_config("demo").policy.settings, "max_state_dim": 8, "max_action_dim": 7}
    policy = new_policy(SmolVLAAdapter, str(demo_vlm()), settings, (inputs, {"action": PolicyFeature(FeatureType.ACTION, (7,))}))
    unit = {key: {"mean": torch.zeros(width), "std": torch.ones(width)} for key, width in (("observation.state", 8), ("action", 7))}
    folder = tmp_path_factory.mktemp("libero_policy")
    save_policy(policy, load_processors(policy, stats=unit), folder, str(demo_vlm()))
    return folder
