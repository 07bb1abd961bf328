"""What can be told of a configuration before lerobot is imported: words that name nothing, folders and devices that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_tune.config.arithmetic import doubts
from vla_tune.config.places import Stage, check_places
from vla_tune.console import warn
from vla_tune.errors import UserError, nearest
from vla_tune.resources import SHIPPED
from vla_tune.trust.models import check_model
from vla_tune.trust.packages import trust
from vla_tune.trust.policies import check_policy, policy_type

if TYPE_CHECKING:
    from vla_tune.config import Config

NO_TORCH = ("auto", "cpu")
"""Devices that are there."""


def check_early(config: Config, stage: Stage, *, computes: bool = True) -> None:
    """Stop at what a stage would find later, and warn of what its numbers would not do.

    Args:
        config: of the run.
        stage: by the name of its module.
        computes: whether it needs the device; a plan does not.

    Raises:
        UserError: names the key, and what was meant.

    """
    check_places(config, stage)
    if stage in ("anchor", "train", "check"):
        _check_start(config)
        _check_strangers(config)
        _check_demonstrations(config)
    if stage != "eval_rollout":
        _check_questions(config)
    if stage != "eval_vqa":
        _check_worlds(config)
    if stage == "train":
        for doubt in doubts(config):
            warn(doubt)
        if not (config.stream.tasks or config.data.manifest or config.data.repo_id):
            raise UserError("data: give data.repo_id (a LeRobotDataset, with data.root its folder) or data.manifest (what we record)")
    if computes and stage != "check" and config.device not in NO_TORCH:
        from vla_tune.policies.devices import check_device

        check_device(config.device)


def _check_start(config: Config) -> None:
    from vla_tune.policies import adapters

    policy = config.policy
    if policy.path is None and policy.base_vlm is None:
        raise UserError("policy.path or policy.base_vlm must be set: there is no model to start from (policy.base_vlm=demo is shipped)")
    if policy.path is None and policy.type not in (known := adapters()):
        raise UserError(f"policy.type={policy.type}: there is no such policy; {nearest(policy.type, sorted(known))}")


def _check_strangers(config: Config) -> None:
    """What folders name that a run would open only after its demonstrations and questions are made."""
    from vla_tune.policies import adapters

    trust(config.policy.trust)
    path, base = config.policy.path, config.policy.base_vlm
    if path and Path(path).is_dir() and policy_type(path) in adapters():
        check_policy(path, fetch=False)
    if base and base not in SHIPPED and Path(base).is_dir():
        check_model(base)


def _check_demonstrations(config: Config) -> None:
    from vla_tune.data.manifests import DemonstrationsManifest, load_manifest

    name = config.data.manifest
    if name is not None and not isinstance(found := load_manifest(name), DemonstrationsManifest):
        raise UserError(f"data.manifest={name}: it describes {found.kind}, not demonstrations")


def _check_questions(config: Config) -> None:
    from vla_tune.data.manifests import BenchmarkManifest, VqaManifest, load_manifest

    for key, name in {"anchor.manifest": config.anchor.manifest, "vqa.manifest": config.vqa.manifest}.items():
        if name is not None and not isinstance(found := load_manifest(name), VqaManifest | BenchmarkManifest):
            raise UserError(f"{key}={name}: it describes {found.kind}, not questions")


def _check_worlds(config: Config) -> None:
    from vla_tune.learners import kind_of
    from vla_tune.simulators.registry import simulator_of, tasks_of

    if config.stream.tasks:
        kind_of(config)
    if names := config.rollout.tasks:
        tasks_of(simulator_of(names), names)
