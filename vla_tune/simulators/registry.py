"""Which simulators there are: every folder beside this file is one, and its package's `SIMULATOR` says which tasks are its own.

A package imports nothing of its simulator until a world is made, so that an installation may lack the others.
"""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module

import vla_tune.simulators as here
from vla_tune.errors import UserError, nearest
from vla_tune.simulators.base import Simulator


@functools.cache
def simulators() -> dict[str, Simulator]:
    """Every simulator by the name of its folder, whether it is installed or not."""
    folders = [module.name for module in pkgutil.iter_modules(here.__path__) if module.ispkg]
    return {name: import_module(f"{here.__name__}.{name}").SIMULATOR for name in folders}


def simulator_of(names: list[str]) -> Simulator:
    """The simulator that all these tasks or groups belong to.

    Raises:
        UserError: they belong to two, or one to none.

    """
    found = {name: _owner(name) for name in names}
    first = found[names[0]]
    for name, other in found.items():
        if other is not first:
            raise UserError(
                f"rollout.tasks: '{names[0]}' is {first.title}'s and '{name}' {other.title}'s, another robot; evaluate them in two runs"
            )
    return first


def tasks_of(simulator: Simulator, names: list[str]) -> list[str]:
    """The tasks that these names stand for, groups spelt out.

    Raises:
        UserError: no such task, or one is there twice.

    """
    tasks = [task for name in names for task in simulator.tasks(name)]
    for task in tasks:
        if tasks.count(task) > 1:
            raise UserError(f"rollout.tasks: '{task}' is there twice")
    return tasks


def _owner(name: str) -> Simulator:
    for one in simulators().values():
        if one.knows(name):
            return one
    titles = " nor ".join(one.title for one in simulators().values())
    known = [known for one in simulators().values() for known in one.names()]
    raise UserError(f"rollout.tasks: neither {titles} has a task '{name}'; {nearest(name, known)}")
