"""How to make a run again: the commands, the versions, the digests."""

from __future__ import annotations

import json
import shlex
from typing import Any

from vla_tune.config import Config, completed, differences, load_config
from vla_tune.reports.runs import Row, Run
from vla_tune.resources import available


def provenance(run: Run) -> Row:
    """The commands that make the run's stages again, and what each finished stage was made with and from."""
    return {
        "commands": [command(stage, artifact.config, run) for stage, artifact in run.artifacts.items()],
        "stages": [
            {
                "stage": stage,
                "created_at": artifact.manifest["created_at"],
                "version": artifact.manifest["version"],
                "digest": artifact.digest,
                "inputs": artifact.manifest["inputs"],
                "environment": artifact.manifest["environment"],
            }
            for stage, artifact in run.artifacts.items()
        ],
        "config": run.config,
    }


def command(stage: str, config: Row, run: Run) -> str:
    """The command line of one stage: its pipeline, and the keys that differ from it."""
    name = str(config["name"])
    base = load_config(name) if name in available("pipelines") else Config(name=name)
    changed = differences(base.to_dict(), completed(config))
    words = ["vla-tune", stage, base.pipeline, *(f"{key}={_written(value)}" for key, value in changed.items()), "--out", str(run.path)]
    return " ".join(shlex.quote(word) for word in words)


def _written(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)
