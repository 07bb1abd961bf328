import importlib.util
import sys

import numpy as np
import pytest

from vla_tune.errors import UserError
from vla_tune.simulators.metaworld import drawing
from vla_tune.simulators.metaworld import world as module
from vla_tune.simulators.metaworld.world import FastMetaworldConfig, FastMetaworldEnv


def world(task="door-open-v3", size=64, **settings):
    return FastMetaworldEnv(task, obs_type="pixels_agent_pos", observation_width=size, observation_height=size, **settings)


def test_pictures_have_the_asked_size():
    env = FastMetaworldEnv(
        "reach-v3",
        obs_type="pixels_agent_pos",
        observation_width=96,
        observation_height=48,
        visualization_width=80,
        visualization_height=60,
    )
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert observation["pixels"].shape == (48, 96, 3)
    assert env.step(np.zeros(4, np.float32))[0]["pixels"].shape == (48, 96, 3)
    assert env.render().shape == (60, 80, 3)


def test_physics_rewards_and_view_are_lerobots():
    from lerobot.envs.metaworld import MetaworldEnv

    ours, theirs = world(size=480), MetaworldEnv("door-open-v3", obs_type="pixels_agent_pos")
    picture, reference = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    assert np.array_equal(picture["agent_pos"], reference["agent_pos"])
    small, large = (image["pixels"].reshape(48, 10, 48, 10, 3).mean((1, 3, 4)) for image in (picture, reference))
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.9  # shadows are all that differs
    theirs._format_raw_obs = lambda raw: {"raw": raw}  # its pictures take a tenth of a second each
    generator = np.random.default_rng(0)
    ours.render_observations = False
    for _ in range(20):
        action = generator.uniform(-1.5, 1.5, 4).astype(np.float32)
        _, reward, terminated, truncated, _ = ours.step(action)
        raw, *rest, _ = theirs.step(action)
        assert np.array_equal(ours.raw_observation, raw["raw"])
        assert (reward, terminated, truncated) == tuple(rest)
    theirs.close()


def test_an_episode_follows_from_its_seed_alone():
    used, fresh, other = world("drawer-open-v3"), world("drawer-open-v3"), world("reach-v3")
    used.reset(seed=8)
    for _ in range(30):
        used.step(used.action_space.sample())
    one, two = used.reset(seed=9)[0], fresh.reset(seed=9)[0]
    assert np.array_equal(one["pixels"], two["pixels"])
    other.reset(seed=9)  # another world's context is current now
    action = np.float32([0.5, -0.5, 0.2, 1])
    one, two = used.step(action)[0], fresh.step(action)[0]
    assert np.array_equal(one["pixels"], two["pixels"])
    assert np.array_equal(used.raw_observation, fresh.raw_observation)
    assert not np.array_equal(used.reset(seed=10)[0]["pixels"], one["pixels"])


def test_pictures_are_drawn_on_demand_only(monkeypatch):
    env = world()
    env.render_observations = False
    monkeypatch.setattr(env, "_picture", pytest.fail)
    assert env.reset(seed=1)[0].keys() == {"agent_pos"}
    assert env.step(np.zeros(4, np.float32))[0].keys() == {"agent_pos"}
    monkeypatch.undo()
    assert env.observe()["pixels"].shape == (64, 64, 3)


def test_the_step_limit_truncates():
    env = world(episode_length=3)
    env.render_observations = False
    for seed in (1, 2):
        env.reset(seed=seed)
        assert [env.step(np.zeros(4, np.float32))[3] for _ in range(3)] == [False, False, True]
    assert env._max_episode_steps == 3


def test_success_ends_an_episode_and_stays_visible():
    env = world("drawer-close-v3")
    env.reset(seed=1)
    env.render_observations = False
    success, info = False, {}
    while not success:
        _, _, success, truncated, info = env.step(np.float32(np.clip(env.expert_policy.get_action(env.raw_observation), -1, 1)))
        assert not truncated
    assert info["final_info"]["is_success"]
    assert np.array_equal(env.raw_observation[:3], env._env._last_stable_obs[:3])  # not reset


def test_a_wrong_action_is_refused():
    env = world()
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((1, 4), np.float32))


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'door-open-v3'"):
        world("door-opn-v3")


def test_lerobots_factory_builds_it():
    from lerobot.envs import make_env, make_env_config
    from lerobot.envs.utils import env_to_policy_features

    config = make_env_config("metaworld_fast", task="reach-v3,door-open-v3", episode_length=7)
    assert isinstance(config, FastMetaworldConfig)
    features = env_to_policy_features(config)
    assert features["observation.image"].shape == (3, 64, 64)
    assert features["observation.state"].shape == (4,)
    envs = make_env(config, n_envs=2)
    assert {name: list(group) for name, group in envs.items()} == {"reach-v3": [0], "door-open-v3": [0]}
    pictures = {}
    for name, group in envs.items():
        observation, _ = group[0].reset(seed=[4, 5])
        assert observation["pixels"].shape == (2, 64, 64, 3)
        assert group[0].call("_max_episode_steps") == (7, 7)
        pictures[name] = observation["pixels"]
    alone = world("reach-v3").reset(seed=4)[0]["pixels"]
    assert np.array_equal(pictures["reach-v3"][0], alone)
    assert not np.array_equal(pictures["reach-v3"][0], pictures["reach-v3"][1])
    for group in envs.values():
        group[0].close()


def test_without_gl_the_packages_are_named(monkeypatch):
    import mujoco.egl

    class Broken:
        def __init__(self, width, height):
            raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setattr(mujoco.egl, "GLContext", Broken)
    with pytest.raises(UserError, match=r"EGL device display.*apt-get install libegl1 libopengl0"):
        world("window-open-v3").reset(seed=1)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            ModuleNotFoundError("No module named 'metaworld'", name="metaworld"),
            r"no module 'metaworld'.*pip install 'vla-tune\[metaworld\]'",
        ),
        (AttributeError("'NoneType' object has no attribute 'eglQueryString'"), r"no GL backend.*apt-get install libegl1 libopengl0"),
    ],
)
def test_an_import_that_fails_is_one_message(monkeypatch, failure, message):
    class Fails:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "metaworld":
                raise failure

    monkeypatch.delitem(sys.modules, "metaworld")
    monkeypatch.setattr(sys, "meta_path", [Fails, *sys.meta_path])
    spec = importlib.util.spec_from_file_location("metaworld_again", module.__file__)
    with pytest.raises(UserError, match=message):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_renderers_can_be_closed_and_made_again():
    env = world()
    picture = env.reset(seed=1)[0]["pixels"]
    contexts = [renderer._gl for renderer in drawing._local.renderers.values()]
    drawing.close_renderers()
    assert contexts
    assert all(context._context is None for context in contexts)  # else EGL complains when the interpreter ends
    assert np.array_equal(env.observe()["pixels"], picture)
