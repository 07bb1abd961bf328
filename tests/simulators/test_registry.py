"""Simulators are found by their folders, and one runs where the others are not installed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vla_tune.simulators
from vla_tune.errors import UserError
from vla_tune.simulators.registry import simulator_of, simulators, tasks_of

FOLDER = Path(vla_tune.simulators.__file__).parent


def test_every_folder_is_a_simulator_whose_names_are_its_own():
    folders = {file.parent.name for file in FOLDER.glob("*/__init__.py")}
    assert set(simulators()) == folders >= {"libero", "metaworld"}
    names = [name for one in simulators().values() for name in one.names()]
    assert len(names) == len(set(names))
    for one in simulators().values():
        for name in one.names():
            assert simulator_of([name]) is one
            assert set(tasks_of(one, [name])) <= set(one.names())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["reach-v3", "libero_goal"], "'reach-v3' is Meta-World's and 'libero_goal' LIBERO's, another robot"),
        (["reach-v4"], "neither LIBERO nor Meta-World has a task 'reach-v4'; did you mean 'reach-v3'"),
        (["libero_goals"], "did you mean 'libero_goal'"),
    ],
)
def test_what_no_one_simulator_has(names, message):
    with pytest.raises(UserError, match=message):
        simulator_of(names)


def test_no_simulator_names_another_and_what_they_share_names_none():
    """Adding one is one folder: no other file knows it."""
    for file in FOLDER.rglob("*.py"):
        own = file.relative_to(FOLDER).parts[0]
        named = {module.split(".")[2] for module in imports(file) if module.startswith("vla_tune.simulators.")}
        assert not named & set(simulators()) - {own}, file


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def alone(blocked, code):
    """Run code in a Python in which these packages are not installed."""
    block = f"import sys\nfor name in {blocked!r}:\n    sys.modules[name] = None\n"
    ran = subprocess.run([sys.executable, "-c", block + code], check=False, capture_output=True, text=True, env=dict(os.environ))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


CHECKED = """
from vla_tune.config import load_config
from vla_tune.errors import UserError
from vla_tune.stages import eval_rollout
def check(*overrides):
    return eval_rollout.check_rollout(load_config("demo", ["rollout.step_limit=null", "rollout.probe=1", *overrides]).rollout)
"""
PLUGIN = """
from lerobot.configs.parser import load_plugin
from lerobot.envs.configs import EnvConfig
load_plugin("vla_tune.rollout")
load_plugin("vla_tune.simulators")
known = EnvConfig.get_known_choices()
"""


def test_libero_runs_without_meta_world(libero_assets):
    """Its plan and probe, a world in real physics, and lerobot-eval's plugin."""
    code = f"""{CHECKED}
simulator, tasks = check("rollout.tasks=[libero_object/0, libero_object/1]", "rollout.first_seed=0", "rollout.episodes=2")
import vla_tune.simulators.compat, vla_tune.simulators.offline, vla_tune.simulators.runner, vla_tune.vqa.dataset
from vla_tune.simulators.chunks import world_maker
world = world_maker(simulator, 32, 5)(tasks[0])()
world.begin(0, filmed=False)
print(world.observe()["pixels"]["image"].shape)
world.close()
simulator.close()
try:
    check("rollout.tasks=[touch-red, touch-blue]")
except UserError as error:
    print(error)
{PLUGIN}
assert "libero" in known and "metaworld_fast" not in known
"""
    out = alone(["metaworld"], code)
    assert "(32, 32, 3)" in out
    assert "Meta-World is not installed (no module 'metaworld'); pip install 'vla-tune[metaworld]'" in out


def test_meta_world_runs_without_libero():
    code = f"""{CHECKED}
simulator, tasks = check("rollout.tasks=[touch-red, touch-blue]", "rollout.episodes=2")
from vla_tune.simulators.chunks import world_maker
world = world_maker(simulator, 32, 5)(tasks[0])()
world.begin(0, filmed=False)
print(world.observe()["pixels"].shape)
world.close()
simulator.close()
try:
    check("rollout.tasks=[libero_object/0, libero_object/1]", "rollout.first_seed=0", "rollout.episodes=2")
except UserError as error:
    print(error)
{PLUGIN}
assert "metaworld_fast" in known
"""
    out = alone(["libero", "robosuite"], code)
    assert "(32, 32, 3)" in out
    assert "LIBERO is not installed" in out


def test_whose_a_task_is_is_known_without_any_of_their_packages():
    code = """
from vla_tune.simulators.registry import simulator_of, tasks_of
assert simulator_of(["touch-red"]).title == "Meta-World"
assert tasks_of(simulator_of(["libero_10"]), ["libero_10"])[0] == "libero_10/0"
"""
    alone(["libero", "robosuite", "metaworld", "mujoco", "lerobot.envs", "torch"], code)
