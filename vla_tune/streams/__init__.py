"""Streams of tasks: what a model is trained on task after task, the loop, and the matrix of every task after every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.streams.learner import Learner


def open_learner(config: Config) -> Learner:
    """The learner of a stream's kind, which follows from its tasks.

    Raises:
        UserError: tasks of several kinds, or something that they name is missing.

    """
    from vla_tune.data.manifests import LabelledManifest, in_folder, load_manifest

    kinds = set()
    for task in config.stream.tasks:
        if bool(task.manifest) == bool(task.tasks):
            raise UserError(f"stream.tasks: '{task.name}' needs either a manifest (pictures or questions) or tasks (of a robot)")
        if task.manifest:
            kinds.add("pictures" if isinstance(load_manifest(in_folder(config.stream, task.manifest)), LabelledManifest) else "questions")
        else:
            kinds.add("robot")
    if len(kinds) > 1:
        raise UserError(f"stream.tasks: a stream is of one kind, and these are {' and '.join(sorted(kinds))}")
    if "pictures" in kinds:
        from vla_tune.streams.pictures import Pictures

        return Pictures(config)
    if "questions" in kinds:
        from vla_tune.streams.questions import Questions

        return Questions(config)
    from vla_tune.streams.robot import Robot

    return Robot(config)
