"""`eval`: both evaluations, then the joint report, made from whichever of them succeeded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.artifacts.folder import Artifact
from vla_tune.console import say, warn
from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.config import Config


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Evaluate `RUN/train` (or `train.path`) on questions and in closed loop; a stream of pictures or questions on these alone.

    Raises:
        Exception: the first failure of an evaluation, after the report was made from the other.

    """
    from vla_tune.stages import eval_rollout, eval_vqa, report, stream

    goes_on = (run / "eval-rollout.partial").exists() and not overwrite  # it was interrupted there
    for name in ("eval-vqa", "eval-rollout", "report"):
        if (run / name).exists() and not overwrite and not (goes_on and name == "eval-vqa"):
            raise UserError(
                f"{run / name} exists already; give --overwrite to redo evaluations and report, or run one of them by its own command"
            )
    failures: list[Exception] = []
    stages = [eval_vqa, eval_rollout]
    if config.stream.tasks and not stream.is_robots(config):
        say("this stream is of pictures or questions: there is no world to act in, and no eval-rollout")
        stages = [eval_vqa]
    for stage in stages:
        if goes_on and stage is eval_vqa and (run / "eval-vqa").exists():
            say("eval-vqa is done; going on with eval-rollout")
            continue
        try:
            stage.run(config, run, overwrite=overwrite)
        except Exception as error:  # whatever it was, the other evaluation is worth having
            if failures:
                warn(str(error))
            failures.append(error)
    if len(failures) == len(stages):
        raise failures[0]
    artifact = report.run([run], run / "report", overwrite=True)
    if failures:
        raise failures[0]
    return artifact
