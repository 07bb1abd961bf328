"""The one place that looks at a dataset before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
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
    known = tables.Tables(meta)
    for subject in (_files, _numbers, _features, _scales, _instructions, _pictures):
        found = list(subject(config, known))
        yield from found
        if any(one.stops for one in found):
            return


def _files(_config: Config, known: tables.Tables) -> Iterator[Finding]:
    yield from tables.missing_files(known.meta)


def _numbers(config: Config, known: tables.Tables) -> Iterator[Finding]:
    yield from tables.disagreements(known)
    yield from tables.unnamed_tasks(known, instructions(known.meta))
    yield from tables.not_numbers(known, set(_chosen(config, known)))


def _chosen(config: Config, known: tables.Tables) -> list[int]:
    return chosen_episodes(config.data.episodes, len(known.meta.episodes))


def _features(config: Config, known: tables.Tables) -> Iterator[Finding]:
    policy = _policy(config, known)
    if policy is None:
        return
    new, rename = not config.policy.path, _rename(config)
    processor = None if new or rename else texts.open_processor(policy, config.policy.path)
    yield from cameras(known.meta, policy, rename, new=new, saved=renamed(processor) if processor else None)


def _instructions(config: Config, known: tables.Tables) -> Iterator[Finding]:
    policy = _policy(config, known)
    processor = texts.open_processor(policy, config.policy.path) if policy else None
    if policy and processor:
        yield from texts.instructions(texts.tokenized(list(instructions(known.meta).values()), policy, processor))


def _pictures(config: Config, known: tables.Tables) -> Iterator[Finding]:
    yield from pictures(known.meta, _chosen(config, known))


def _policy(config: Config, known: tables.Tables) -> PreTrainedConfig | None:
    made = known_policy(config, known.meta)
    return made[0] if made else None


def _rename(config: Config) -> dict[str, str]:
    return dict(config.data.rename) if config.policy.path else {}


def _scales(config: Config, known: tables.Tables) -> Iterator[Finding]:
    meta, rename, policy = known.meta, _rename(config), _policy(config, known)
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
