"""Streams of tasks: what a model is trained on task after task, the loop, and the matrix of every task after every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.streams.learner import Learner


def kind_of(config: Config) -> str:
    """What a stream is of, which follows from its tasks: `pictures`, `questions`, or a `robot`'s.

    Raises:
        UserError: tasks of several kinds, or one of none.

    """
    from vla_tune.data.manifests import LabelledManifest, in_folder, load_manifest

    kinds = set()
    for task in config.stream.tasks:
        if bool(task.manifest) == bool(task.tasks):
            raise UserError(f"stream.tasks: '{task.name}' needs either a manifest (pictures or questions) or tasks (of a robot)")
        if task.manifest:
            manifest = load_manifest(in_folder(config.stream.folder, task.manifest))
            kinds.add("pictures" if isinstance(manifest, LabelledManifest) else "questions")
        else:
            kinds.add("robot")
    if len(kinds) > 1:
        raise UserError(f"stream.tasks: a stream is of one kind, and these are {' and '.join(sorted(kinds))}")
    return kinds.pop()


def open_learner(config: Config) -> Learner:
    """The learner of a stream's kind.

    Raises:
        UserError: something that its tasks name is missing.

    """
    kind = kind_of(config)
    if kind == "pictures":
        from vla_tune.streams.pictures import Pictures

        return Pictures(config)
    if kind == "questions":
        from vla_tune.streams.questions import Questions

        return Questions(config)
    from vla_tune.streams.robot import Robot

    return Robot(config)
