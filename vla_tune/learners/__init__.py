"""What is trained: a model with its tasks, their batches and the forward pass; one learner for each kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.config import Config
    from vla_tune.learners.base import Learner


def kind_of(config: Config) -> str:
    """What a stream is of, which follows from its tasks: `pictures`, `questions`, or a `robot`'s.

    Raises:
        UserError: tasks of several kinds, or one of none.

    """
    stream, kinds = config.stream, set()
    for task in stream.tasks:
        if bool(task.manifest) == bool(task.tasks):
            raise UserError(f"stream.tasks: '{task.name}' needs one of two: a manifest (pictures or questions), or tasks (of a robot)")
        if task.manifest and task.instructions:
            raise UserError(f"stream.tasks: '{task.name}': instructions are a robot's, and it has a manifest; leave them out")
        kinds.add(_kind_of_samples(stream.folder, task.manifest) if task.manifest else "robot")
    if len(kinds) > 1:
        raise UserError(f"stream.tasks: a stream is of one kind, and these are {' and '.join(sorted(kinds))}")
    (kind,) = kinds
    if stream.reference and kind == "robot":
        raise UserError(f"stream.reference={stream.reference}: what belongs to no task of a robot is asked by vqa.manifest; set that")
    if stream.reference and _kind_of_samples(stream.folder, stream.reference) != kind:
        raise UserError(f"stream.reference={stream.reference}: its samples are no {kind}, which the tasks' are")
    return kind


def _kind_of_samples(folder: str | None, name: str) -> str:
    from vla_tune.data.manifests import DemonstrationsManifest, LabelledManifest, in_folder, load_manifest

    manifest = load_manifest(in_folder(folder, name))
    if isinstance(manifest, DemonstrationsManifest):
        raise UserError(
            f"stream: the manifest '{name}' is of demonstrations; a stream's are of pictures or questions, a robot's tasks have names"
        )
    return "pictures" if isinstance(manifest, LabelledManifest) else "questions"


def open_learner(config: Config) -> Learner:
    """The learner of plain training, or of a stream's kind.

    Raises:
        UserError: something that its tasks name is missing.

    """
    if not config.stream.tasks:
        from vla_tune.learners.demonstrations import Demonstrations

        return Demonstrations(config)
    kind = kind_of(config)
    if kind == "pictures":
        from vla_tune.learners.pictures import Pictures

        return Pictures(config)
    if kind == "questions":
        from vla_tune.learners.questions import Questions

        return Questions(config)
    from vla_tune.learners.robot import Robot

    return Robot(config)
