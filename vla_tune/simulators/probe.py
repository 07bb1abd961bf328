"""The language probe: the same episodes under the right, another task's, and no instruction.

A policy that listens fails without its instruction; one that knows the task from the picture alone does not notice.
"""

from __future__ import annotations

from typing import Any

from vla_tune.errors import UserError
from vla_tune.simulators.base import Simulator
from vla_tune.simulators.episodes import Episode
from vla_tune.stats.intervals import wilson

GIVEN = ("right", "swapped", "empty")
"""The instructions that an episode is run under: the task's own, another's, none."""


def plan_probe(episodes: list[Episode], tasks: list[str], simulator: Simulator) -> list[Episode]:
    """Every one of these episodes again with the instruction of another of the `tasks`, then with an empty one."""
    swapped = [
        Episode(one.task, one.seed, simulator.instruction(swap(one.task, one.seed, tasks, simulator)), given="swapped") for one in episodes
    ]
    return swapped + [Episode(one.task, one.seed, "", given="empty") for one in episodes]


def swap(task: str, seed: int, tasks: list[str], simulator: Simulator) -> str:
    """The task whose instruction a swapped episode gets: one that the same scene could be used for, if there is one.

    Seeds take turns through what there is, so that no task is always swapped for the same one. The simulator may know
    others of the scene (`alternatives`); without a task of the same scene, any other of `tasks` is taken.
    """
    told, scene = simulator.instruction, simulator.scene
    others = [other for other in dict.fromkeys([*tasks, *simulator.alternatives(task)]) if told(other) != told(task)]
    same = [other for other in others if scene(other) == scene(task)] or [other for other in others if other in tasks]
    if not same:
        raise UserError(f"rollout.probe: there is no other task than '{task}' whose instruction could be given; add one to rollout.tasks")
    return same[seed % len(same)]


def probe_report(episodes: list[Episode], simulator: Simulator) -> dict[str, Any]:
    """Success of the original task under each instruction, `{value, low, high, episodes}` with a Wilson 95 % interval.

    `followed`, null where the simulator cannot tell: how often the swapped instruction was done, such as the ball that it names touched.
    """
    groups = {given: [episode for episode in episodes if episode.given == given] for given in GIVEN}
    answers = [simulator.followed(episode.task, episode.instruction, episode.touched) for episode in groups["swapped"]]
    followed = [answer for answer in answers if answer is not None]
    rates = {given: _rate([episode.success for episode in group]) for given, group in groups.items()}
    return {**rates, "followed": _rate(followed) if followed else None}


def _rate(outcomes: list[bool]) -> dict[str, Any]:
    return {**wilson(sum(outcomes), len(outcomes)), "episodes": len(outcomes)}
