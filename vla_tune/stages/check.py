"""`vla-tune check`: a first look at what a run would read. Nothing is fetched, recorded or written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.console import say, table
from vla_tune.data.demonstrations import known_metadata
from vla_tune.data.instructions import instructions
from vla_tune.learners.planned import known_policy, token_counts
from vla_tune.preflight.findings import settle
from vla_tune.preflight.look import look, reads_demonstrations
from vla_tune.preflight.tables import Tables
from vla_tune.stages.downloads import fetches, show_fetches
from vla_tune.trust.packages import trust

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    from vla_tune.config import Config

QUANTILES = (0, 0.01, 0.5, 0.99, 1)


def run(config: Config) -> None:
    """Print what is there, then what was found.

    Raises:
        UserError: a run would be wrong.

    """
    trust(config.policy.trust)
    show_fetches(fetches(config))
    meta = known_metadata(config.data) if reads_demonstrations(config) else None
    if meta is None:
        say("there are no demonstrations here to look at")
        return
    known = known_policy(config, meta)
    _show(meta, token_counts(known[1], meta) if known else {})
    found = list(look(config, meta))
    if not any(one.stops for one in found):
        table("numbers", ["", "least", "1 %", "median", "99 %", "most", "deviation"], list(_ranges(Tables(meta))))
    settle(found)
    say("nothing that would stop a run was found")


def _show(meta: LeRobotDatasetMetadata, tokens: dict[str, int]) -> None:
    say(f"{meta.repo_id}: {meta.total_episodes} episodes, {meta.total_frames} frames, {meta.fps} a second")
    cameras = [[key, " x ".join(map(str, meta.features[key]["shape"])), str(meta.features[key]["dtype"])] for key in meta.camera_keys]
    table("cameras", ["", "shape", "stored as"], cameras)
    rows = [[str(number), text, str(tokens.get(text, "?"))] for number, text in sorted(instructions(meta).items())]
    table("instructions", ["", "", "tokens"], rows)


def _ranges(tables: Tables) -> Iterator[list[Any]]:
    for key in tables.vectors:
        if key.startswith(("observation.", "action")):
            values = tables.numbers(key)
            for place, own in enumerate(values.T):
                quantiles = np.quantile(own, QUANTILES)
                yield [f"{key}[{place}]", *(f"{value:.4g}" for value in (*quantiles, own.std()))]
