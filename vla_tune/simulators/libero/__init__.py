"""LIBERO's suites through lerobot's environment, under the published protocol.

A task is written SUITE/NUMBER, such as `libero_object/3`; a suite stands for its ten tasks. An episode's seed is the
number of one of the task's 50 fixed initial states.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_tune.config import read_yaml
from vla_tune.errors import UserError, nearest
from vla_tune.resources import cache_folder
from vla_tune.simulators.base import Assets, Simulator, World

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
TASKS = 10
"""Of each suite."""
INITIAL_STATES = 50
"""Of each task."""
ASSETS = "lerobot/libero-assets"
"""Where LIBERO fetches its objects and scenes from, once."""


class Libero(Simulator):
    """The four suites on which VLAs are compared."""

    title = "LIBERO"
    module = "libero"
    packages = ("lerobot", "hf-libero", "robosuite", "mujoco", "torch")
    cameras = ("observation.images.image", "observation.images.image2")
    state, action = 8, 7
    incomparable = "LIBERO's initial states do not follow from its seeds there"

    def names(self) -> list[str]:
        return [*SUITES, *(f"{suite}/{number}" for suite in SUITES for number in range(TASKS))]

    def knows(self, name: str) -> bool:
        return name.partition("/")[0] in SUITES

    def tasks(self, name: str) -> list[str]:
        suite, slash, number = name.partition("/")
        if suite not in SUITES:
            raise UserError(f"LIBERO has no suite '{suite}'; {nearest(suite, list(SUITES))}")
        if slash and number not in map(str, range(TASKS)):
            raise UserError(f"LIBERO has no task '{name}'; those of {suite} are {suite}/0 to {suite}/{TASKS - 1}")
        return [name] if slash else [f"{suite}/{number}" for number in range(TASKS)]

    def group(self, task: str) -> str:
        return task.partition("/")[0]

    def instruction(self, task: str) -> str:
        suite, number = split(task)
        return str(load_suite(suite).get_task(number).language)

    def scene(self, task: str) -> str:
        return self.group(task)

    def step_limit(self, task: str) -> int:
        prepare()
        from lerobot.envs.libero import TASK_SUITE_MAX_STEPS

        return int(TASK_SUITE_MAX_STEPS[self.group(task)])

    def prepare(self) -> None:
        prepare()

    def assets(self) -> Assets:
        return Assets("LIBERO's objects", ASSETS, assets_here())

    def maker(self, task: str, *, image_size: int, step_limit: int) -> Callable[[], World]:
        return functools.partial(_make_world, *split(task), image_size, step_limit)

    def processor(self) -> Any:
        from lerobot.envs.configs import LiberoEnv

        return LiberoEnv().get_env_processors()[0]

    def check_seeds(self, first: int, last: int) -> None:
        if last >= INITIAL_STATES:
            raise UserError(
                f"rollout.first_seed={first}: seeds up to {last}, but a seed is the number of an initial state, and LIBERO's tasks have "
                f"{INITIAL_STATES}; lower rollout.first_seed or rollout.episodes"
            )


SIMULATOR = Libero()


def split(task: str) -> tuple[str, int]:
    """Suite and number of a task's name."""
    suite, _, number = task.partition("/")
    return suite, int(number)


def _make_world(suite: str, number: int, image_size: int, step_limit: int) -> World:
    prepare()
    from vla_tune.simulators.libero.world import LiberoWorld

    return LiberoWorld(load_suite(suite), suite, number, image_size=image_size, step_limit=step_limit)


@functools.cache
def load_suite(name: str) -> Any:
    """LIBERO's own object of a suite."""
    prepare()
    from libero.libero import benchmark

    with contextlib.redirect_stdout(io.StringIO()):  # it prints the tasks' order
        return benchmark.get_benchmark(name)()


@functools.cache
def prepare() -> None:
    """Import LIBERO without its questions, and tell what it lacks.

    Its first import asks on the terminal where to keep its files, unless there is a `config.yaml` in `$LIBERO_CONFIG_PATH`
    or `~/.libero`; where there is none, one with the package's own folders is put under our cache. It passes over the
    `assets` that such a file names; here they count.

    Raises:
        UserError: LIBERO is not installed, cannot draw, or its assets are neither here nor to be had from the Hub.

    """
    root = _installed()
    from vla_tune.simulators.gl import no_gl

    file = config_file()
    if not file.is_file():
        _write_config(file, root)
    os.environ["LIBERO_CONFIG_PATH"] = str(file.parent)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        import lerobot.envs.libero  # noqa: F401 - robosuite looks for a display
        import libero.libero as package
    except (ImportError, AttributeError, RuntimeError, OSError) as failure:
        raise no_gl(failure) from None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        named = Path(package.get_libero_path("assets"))
        if named.is_dir():
            package._assets_path_cache = str(named)  # noqa: SLF001 - there is no other way to say it
        found = Path(package.get_assets_path())
    if not (found / "scenes").is_dir():
        raise UserError(
            f"LIBERO's assets are not in {found} and the Hub was not reached; put them there, or name their folder as `assets` in {file}"
        )


def assets_here() -> bool:
    """Whether LIBERO's objects and scenes are on this machine, where it or its configuration says."""
    file = config_file()
    named = str(read_yaml(file).get("assets", "")) if file.is_file() else ""
    return any((Path(folder) / "scenes").is_dir() for folder in (named, Path.home() / ".cache" / "libero" / "assets") if folder)


def config_file() -> Path:
    """LIBERO's configuration: the user's, or else the one under our cache, which may not be there yet."""
    user = Path(os.environ.get("LIBERO_CONFIG_PATH") or Path.home() / ".libero") / "config.yaml"
    return user if user.is_file() else cache_folder() / "libero" / "config.yaml"


def _installed() -> Path:
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("LIBERO is not installed (no module 'libero'); pip install 'vla-tune[libero]' (Linux only)")
    return Path(spec.submodule_search_locations[0]) / "libero"


def _write_config(file: Path, root: Path) -> None:
    folders = {"bddl_files": "bddl_files", "init_states": "init_files", "datasets": "../datasets", "assets": "assets"}
    lines = [f"benchmark_root: {root}", *(f"{key}: {root / name}" for key, name in folders.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")  # the worlds' processes read it at any time
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(file)
