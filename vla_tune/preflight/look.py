"""The one place that looks at a dataset before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vla_tune.data.batches import chosen_episodes
from vla_tune.data.demonstrations import dataset_metadata, recompute_command
from vla_tune.data.instructions import instructions
from vla_tune.learners import kind_of
from vla_tune.learners.planned import known_policy
from vla_tune.policies.loading import renamed
from vla_tune.preflight import instructions as texts
from vla_tune.preflight import statistics, tables
from vla_tune.preflight.cameras import cameras
from vla_tune.preflight.findings import Finding, settle
from vla_tune.preflight.pictures import pictures
from vla_tune.trust.policies import check_policy

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import Config

VECTORS = ("observation.state", "action")


def reads_demonstrations(config: Config) -> bool:
    """Whether there is a dataset to look at: a stream of pictures or of questions has none."""
    named = bool(config.data.manifest or config.data.repo_id)
    return named and (not config.stream.tasks or kind_of(config) == "robot")


def preflight(config: Config) -> LeRobotDatasetMetadata | None:
    """Look at the dataset that a run would read, recorded or fetched where it is not here; tell what is odd.

    Returns:
        Its metadata; None where the run reads no demonstrations.

    Raises:
        UserError: a run with it would be wrong.

    """
    if not reads_demonstrations(config):
        return None
    if config.policy.path:
        check_policy(config.policy.path)  # before demonstrations are recorded
    meta = dataset_metadata(config.data)
    settle(look(config, meta))
    return meta


def look(config: Config, meta: LeRobotDatasetMetadata) -> Iterator[Finding]:
    """What is found, the worst first: what comes later takes for granted that nothing before it stops.

    Args:
        config: the run's.
        meta: of the dataset.

    Raises:
        UserError: a setting is wrong, or the policy is too narrow for the dataset.

    """
    run = Subject(config, tables.Tables(meta))
    for subject in (_files, _numbers, _features, _scales, _instructions, _pictures):
        found = list(subject(run))
        yield from found
        if any(one.stops for one in found):
            return


@dataclass
class Subject:
    """What is looked at; the policy's configuration and processor are opened once, and not before they are needed."""

    config: Config
    tables: tables.Tables

    @property
    def meta(self) -> LeRobotDatasetMetadata:
        return self.tables.meta

    @property
    def rename(self) -> dict[str, str]:
        return dict(self.config.data.rename) if self.config.policy.path else {}

    @cached_property
    def chosen(self) -> list[int]:
        return chosen_episodes(self.config.data.episodes, len(self.meta.episodes))

    @cached_property
    def policy(self) -> PreTrainedConfig | None:
        made = known_policy(self.config, self.meta)
        return made[0] if made else None

    @cached_property
    def processor(self) -> PolicyProcessorPipeline | None:
        return texts.open_processor(self.policy, self.config.policy.path) if self.policy else None


def _files(run: Subject) -> Iterator[Finding]:
    yield from tables.missing_files(run.meta)


def _numbers(run: Subject) -> Iterator[Finding]:
    yield from tables.disagreements(run.tables)
    yield from tables.unnamed_tasks(run.tables, instructions(run.meta))
    yield from tables.not_numbers(run.tables, set(run.chosen))


def _features(run: Subject) -> Iterator[Finding]:
    if run.policy is None:
        return
    new = not run.config.policy.path
    saved = None if new or run.rename or not run.processor else renamed(run.processor)
    yield from cameras(run.meta, run.policy, run.rename, new=new, saved=saved)


def _scales(run: Subject) -> Iterator[Finding]:
    for key in [key for key in run.tables.vectors if run.rename.get(key, key) in VECTORS]:
        stats, command = (run.meta.stats or {}).get(key, {}), recompute_command(run.meta)
        width = int(run.meta.features[key]["shape"][0])
        wrong = list(statistics.unusable(stats, key, width, _mode(run.policy, run.rename.get(key, key)), command))
        yield from wrong
        if not wrong:
            yield from statistics.resting(run.tables, stats, key)
            yield from statistics.foreign(run.tables, stats, key, command)


def _instructions(run: Subject) -> Iterator[Finding]:
    if run.policy and run.processor:
        yield from texts.instructions(texts.tokenized(list(instructions(run.meta).values()), run.policy, run.processor))


def _pictures(run: Subject) -> Iterator[Finding]:
    yield from pictures(run.meta, run.chosen)


def _mode(policy: PreTrainedConfig | None, name: str) -> str:
    """lerobot's normalisation of a vector; by mean and deviation, as SmolVLA's, where the policy is not known."""
    modes = {} if policy is None else policy.normalization_mapping
    mode = modes.get("ACTION" if name == "action" else "STATE")
    return "MEAN_STD" if mode is None else str(mode.value)
