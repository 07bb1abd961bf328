"""The language probe: who is told what, and what is counted."""

import pytest

from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.simulators.episodes import Episode, plan
from vla_tune.simulators.metaworld import Metaworld
from vla_tune.simulators.metaworld.tasks import TOUCH_TASKS
from vla_tune.simulators.probe import plan_probe, probe_report, swap
from vla_tune.stages import eval_rollout
from vla_tune.stats.intervals import wilson

SIMULATOR = Metaworld()
TASKS = ["reach-v3", "drawer-open-v3", "drawer-close-v3"]


def test_scenes_are_meta_worlds_models():
    scene = SIMULATOR.scene
    assert scene("drawer-open-v3") == scene("drawer-close-v3") != scene("reach-v3")
    assert {scene(task) for task in TOUCH_TASKS} == {"touch"}


def test_a_task_is_swapped_for_one_of_its_scene():
    assert {swap("drawer-open-v3", seed, TASKS, SIMULATOR) for seed in range(4)} == {"drawer-close-v3"}
    assert {swap("reach-v3", seed, TASKS, SIMULATOR) for seed in range(4)} == {
        "drawer-open-v3",
        "drawer-close-v3",
    }  # nothing shares its scene
    others = [swap("touch-red", seed, ["touch-red"], SIMULATOR) for seed in range(6)]
    assert sorted(others[:3]) == ["touch-blue", "touch-green", "touch-yellow"]  # seeds take turns
    assert others[:3] == others[3:]
    assert swap("push-v3", 0, ["push-back-v3", "push-v3", "reach-v3"], SIMULATOR) == "reach-v3"  # push-back-v3 is told the same
    with pytest.raises(UserError, match="add one to"):
        swap("reach-v3", 0, ["reach-v3"], SIMULATOR)


def test_the_same_initial_states_are_told_otherwise():
    tasks = ["drawer-open-v3", "touch-red"]
    right = plan({task: SIMULATOR.instruction(task) for task in tasks}, 3, 10_000, 0)
    probe = plan_probe(right, tasks, SIMULATOR)
    states = [(episode.task, episode.seed) for episode in right]
    assert [(episode.task, episode.seed) for episode in probe] == states * 2
    assert [episode.given for episode in probe] == ["swapped"] * 3 + ["empty"] * 3
    assert all(episode.instruction not in ("", SIMULATOR.instruction(episode.task)) for episode in probe[:3])
    assert {episode.instruction for episode in probe[3:]} == {""}
    assert not any(episode.recorded for episode in probe)


def test_success_is_the_original_tasks_and_following_is_counted_apart():
    def episode(given, told, touched, task="touch-red"):
        return Episode(task, 1, given=given, instruction=told, touched=touched, success=task == f"touch-{touched}")

    blue = "Touch the blue ball"
    episodes = [episode("right", "Touch the red ball", "red"), episode("right", "Touch the red ball", "blue")]
    episodes += [episode("swapped", blue, "blue"), episode("swapped", blue, "red"), episode("swapped", "Reach", None, "reach-v3")]
    episodes += [episode("empty", "", None)]
    report = probe_report(episodes, SIMULATOR)
    assert report["right"] == {**wilson(1, 2), "episodes": 2}
    assert report["swapped"] == {**wilson(1, 3), "episodes": 3}
    assert report["empty"] == {**wilson(0, 1), "episodes": 1}
    assert report["followed"] == {**wilson(1, 2), "episodes": 2}
    assert probe_report([one for one in episodes if one.given != "swapped"] + episodes[4:5], SIMULATOR)["followed"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.probe=9", "rollout.episodes=8"], "there are only rollout.episodes=8"),
        (["rollout.probe=1", "rollout.tasks=[reach-v3]"], "add one to rollout.tasks"),
    ],
)
def test_a_probe_that_cannot_be_made_is_refused_before_a_policy_is_loaded(overrides, message):
    with pytest.raises(UserError, match=message):
        eval_rollout.check_rollout(load_config("demo", overrides).rollout)
