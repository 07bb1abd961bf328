"""The one place that looks at a dataset before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vla_tune.data.batches import chosen_episodes
from vla_tune.data.demonstrations import dataset_metadata, recompute_command
from vla_tune.data.instructions import instructions
from vla_tune.learners import kind_of
from vla_tune.preflight import statistics, tables
from vla_tune.preflight.findings import Finding, settle

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    from vla_tune.config import Config

VECTORS = ("observation.state", "action")


def reads_demonstrations(config: Config) -> bool:
    """Whether there is a dataset to look at: a stream of pictures or of questions has none."""
    named = bool(config.data.manifest or config.data.repo_id)
    return named and (not config.stream.tasks or kind_of(config) == "robot")


def preflight(config: Config) -> None:
    """Look at the dataset that a run would read, recorded or fetched where it is not here; tell what is odd.

    Raises:
        UserError: a run with it would be wrong.

    """
    if reads_demonstrations(config):
        settle(look(config, dataset_metadata(config.data)))


def look(config: Config, meta: LeRobotDatasetMetadata, policy: PreTrainedConfig | None = None) -> Iterator[Finding]:
    """What is found, the worst first: what comes later takes for granted that nothing before it stops.

    Args:
        config: the run's.
        meta: of the dataset.
        policy: lerobot's configuration of it, where it is here.

    """
    known = tables.Tables(meta)
    for subject in (_files, _numbers, _scales):
        found = list(subject(config, known, policy))
        yield from found
        if any(one.stops for one in found):
            return


def _files(_config: Config, known: tables.Tables, _policy: Any) -> Iterator[Finding]:
    yield from tables.missing_files(known.meta)


def _numbers(config: Config, known: tables.Tables, _policy: Any) -> Iterator[Finding]:
    yield from tables.disagreements(known)
    yield from tables.unnamed_tasks(known, instructions(known.meta))
    chosen = chosen_episodes(config.data.episodes, len(known.meta.episodes)) if config.data.episodes is not None else None
    yield from tables.not_numbers(known, None if chosen is None else set(chosen))


def _scales(config: Config, known: tables.Tables, policy: PreTrainedConfig | None) -> Iterator[Finding]:
    meta, rename = known.meta, config.data.rename if config.policy.path else {}
    for key in [key for key in known.vectors if rename.get(key, key) in VECTORS]:
        stats = (meta.stats or {}).get(key, {})
        command = recompute_command(meta)
        width = int(meta.features[key]["shape"][0])
        wrong = list(statistics.unusable(stats, key, width, _mode(policy, rename.get(key, key)), command))
        yield from wrong
        if not wrong:
            yield from statistics.resting(known, stats, key)
            yield from statistics.foreign(known, stats, key, command)


def _mode(policy: PreTrainedConfig | None, name: str) -> str:
    """lerobot's normalisation of a vector; by mean and deviation, as SmolVLA's, where the policy is not known."""
    modes = {} if policy is None else policy.normalization_mapping
    mode = modes.get("ACTION" if name == "action" else "STATE")
    return "MEAN_STD" if mode is None else str(mode.value)
