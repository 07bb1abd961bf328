"""Our touch tasks: the instruction alone says which ball is wanted, and the picture where it is."""

import numpy as np
import pytest

from vla_tune.simulators.metaworld.tasks import COLOURS, TOUCH_TASKS
from vla_tune.simulators.metaworld.touch import MIN_DISTANCE, REGION, TOUCHED
from vla_tune.simulators.metaworld.world import FastMetaworldEnv

SEEDS = range(10_000, 10_012)


@pytest.fixture(scope="module")
def worlds():
    made = {
        task: FastMetaworldEnv(task, obs_type="pixels_agent_pos", observation_width=64, observation_height=64, episode_length=60)
        for task in TOUCH_TASKS
    }
    for env in made.values():
        env.render_observations = False
    return made


def places(env):
    return np.array([env._env.model.site(colour).pos for colour in COLOURS])


def follow(env, goal=None):
    """The expert's episode, towards another goal where one is given: (success, steps, the ball that was touched)."""
    success = truncated = False
    steps = 0
    while not (success or truncated):
        raw = env.raw_observation.copy()
        if goal is not None:
            raw[-3:] = goal
        _, _, success, truncated, info = env.step(np.float32(np.clip(env.expert_policy.get_action(raw), -1, 1)))
        steps += 1
    return success, steps, info["touched"]


def test_a_seed_shows_the_same_scene_whatever_is_wanted(worlds):
    """Not one pixel of the first picture gives the right ball away, nor does the state that the policy reads."""
    seen = {}
    for task, env in worlds.items():
        env.reset(seed=7)
        seen[task] = (env.observe(), places(env))
    (first, layout), *others = seen.values()
    for observation, other in others:
        assert np.array_equal(layout, other)
        assert np.array_equal(first["pixels"], observation["pixels"])
        assert np.array_equal(first["agent_pos"], observation["agent_pos"])


def test_nothing_gives_the_ball_away_later(worlds):
    """Under the same actions the scenes stay the same: Meta-World moves its goal marker at every step."""
    pictures = []
    for task in ("touch-red", "touch-blue"):
        env = worlds[task]
        env.reset(seed=8)
        for _ in range(3):
            env.step(np.float32([0.2, -0.4, 0.1, 0]))
        pictures.append(env.observe()["pixels"])
    assert np.array_equal(*pictures)


def test_every_ball_can_be_seen(worlds):
    env = worlds["touch-red"]
    env.reset(seed=9)
    whole = env.observe()["pixels"].astype(int)
    for colour in COLOURS:
        site = env._env.model.site(colour)
        rgba = site.rgba.copy()
        site.rgba = (*rgba[:3], 0)
        assert (np.abs(env.observe()["pixels"] - whole).max(-1) > 30).sum() > 3
        site.rgba = rgba


def test_layouts_differ_by_seed_and_keep_their_distances(worlds):
    env, layouts = worlds["touch-green"], []
    for seed in SEEDS:
        env.reset(seed=seed)
        layout = places(env)
        layouts.append(layout.tobytes())
        apart = [np.linalg.norm(a - b) for n, a in enumerate(layout) for b in layout[:n]]
        assert min(apart) >= MIN_DISTANCE > 2 * TOUCHED
        assert (layout[:, :2] >= REGION[0]).all()
        assert (layout[:, :2] <= REGION[1]).all()
    assert len(set(layouts)) == len(layouts)


def test_the_expert_succeeds_on_most_seeds(worlds):
    outcomes = []
    for task, env in worlds.items():
        for seed in SEEDS[:6]:
            env.reset(seed=seed)
            success, steps, touched = follow(env)
            outcomes.append(success)
            assert steps > 1
            assert success == (f"touch-{touched}" == task)
    assert np.mean(outcomes) >= 0.75


def test_a_wrong_ball_ends_the_episode_as_a_failure(worlds):
    env, wrong = worlds["touch-red"], list(COLOURS).index("yellow")
    for seed in SEEDS[:3]:
        env.reset(seed=seed)
        success, steps, touched = follow(env, goal=places(env)[wrong])
        assert touched not in ("red", None)
        assert not success
        assert steps < 60


def test_nothing_touched_is_said_so(worlds):
    env = worlds["touch-red"]
    env.reset(seed=3)
    _, _, success, truncated, info = env.step(np.zeros(4, np.float32))
    assert (success, truncated, info["touched"]) == (False, False, None)


def test_lerobot_finds_them_through_our_package():
    """What `--env.discover_packages_path=vla_tune.simulators --env.type=metaworld_fast --env.task=touch-red` does."""
    from lerobot.configs.parser import load_plugin
    from lerobot.envs import make_env, make_env_config

    load_plugin("vla_tune.simulators")
    envs = make_env(make_env_config("metaworld_fast", task="touch-red,touch-blue"), n_envs=1)
    assert set(envs) == {"touch-red", "touch-blue"}
    pictures = []
    for name, group in envs.items():
        observation, _ = group[0].reset(seed=[4])
        assert group[0].call("task_description") == (TOUCH_TASKS[name],)
        pictures.append(observation["pixels"])
        group[0].close()
    assert np.array_equal(*pictures)
