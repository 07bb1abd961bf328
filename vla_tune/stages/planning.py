"""`train --plan`: what would be fetched, what would be trained, and the memory that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.console import say
from vla_tune.data.demonstrations import known_metadata
from vla_tune.engine import plan
from vla_tune.learners.planned import blueprint
from vla_tune.methods import method_class
from vla_tune.preflight.findings import settle
from vla_tune.preflight.look import look, reads_demonstrations
from vla_tune.stages import stream
from vla_tune.stages.downloads import fetches, show_fetches
from vla_tune.stages.opening import open_anchor, open_method

if TYPE_CHECKING:
    from vla_tune.config import Config


def show_plan(config: Config, run: Path) -> None:
    """Check what can be checked, and print the plan; without downloads, an anchor or recorded demonstrations.

    Raises:
        UserError: wrong input.

    """
    from vla_tune.simulators.registry import simulator_of, tasks_of

    if config.rollout.tasks:
        tasks_of(simulator_of(config.rollout.tasks), config.rollout.tasks)
    ready = show_fetches(fetches(config))
    meta = known_metadata(config.data) if reads_demonstrations(config) else None
    if meta is not None:
        settle(look(config, meta))
    if config.stream.tasks:
        _show_stream(config, run, ready=ready)
        return
    kind = method_class(config.method.name)
    made_by = blueprint(config)
    if made_by is None:
        say("names and tasks are sound; memory can be planned once the configuration (config.json) of what training reads is here")
        return
    anchor = Path(config.anchor.path) if config.anchor.path else run / "anchor"
    made = plan.plan(config, made_by, anchor if kind.needs_anchor and (anchor / "artifact.json").is_file() else None)
    plan.show_groups(made.method, config.train.lr)
    plan.show_plan(config, made)


def _show_stream(config: Config, run: Path, *, ready: bool) -> None:
    """A stream's tasks shape what it holds, so it is opened for its plan."""
    recorded = not stream.is_robots(config) or known_metadata(config.data) is not None
    if not ready or not recorded:
        say("names and tasks are sound; a stream can be planned once what training reads is here")
        return
    stream.warn_of_left_out(config, "train")
    stream.show_plan(config, open_method(config, open_anchor(config, run)))
