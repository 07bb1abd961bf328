"""`eval-rollout` where the pipeline names no world: the policy on the demonstrations that training left out."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_tune.artifacts.folder import Artifact, Draft, write_json
from vla_tune.console import table
from vla_tune.data.batches import as_floats, chosen_episodes, episode_frames, heldout_episodes, opened, ordered_batches
from vla_tune.data.demonstrations import check_dataset, dataset_metadata, open_dataset
from vla_tune.data.identity import check_identity
from vla_tune.data.instructions import instructions
from vla_tune.errors import UserError
from vla_tune.policies.loading import load_policy, load_processors, renamed
from vla_tune.preflight.look import preflight
from vla_tune.simulators.offline import offline_report, replay

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from vla_tune.config import Config


def evaluate(config: Config, policy_path: str, artifact: Artifact | None, draft: Draft) -> Artifact:
    """Write the action error in the robot's units and the language probe into the draft of `eval-rollout`."""
    import pyarrow
    import pyarrow.parquet

    meta = preflight(config) or dataset_metadata(config.data)
    if artifact:
        _check_left_out(config, artifact, meta)
    left_out = heldout_episodes(config.data.heldout, chosen_episodes(config.data.episodes, meta.total_episodes))
    if not left_out:
        raise UserError(
            f"data.heldout={config.data.heldout}: of {meta.total_episodes} episodes none is left out of training, and rollout.tasks names "
            "no world to act in; train with data.heldout of at least one episode, or give rollout.tasks"
        )
    policy = load_policy(policy_path, n_action_steps=config.rollout.n_action_steps, device=config.device).eval()
    processors = load_processors(policy, policy_path)
    check_dataset(meta, policy.config, renamed(processors[0]))
    dataset = open_dataset(meta, policy.config)
    # where an execution of the demonstrations would call the policy
    frames = episode_frames(dataset, left_out, config.rollout.n_action_steps)
    joints = joint_names(dataset)
    replayed = replay(
        policy,
        processors,
        (as_floats(batch) for batch in ordered_batches(opened(dataset, cache_mb=0), frames, config.train.batch_size)),
        calls=len(frames),
        other_instruction=swaps(list(instructions(meta).values())),
        mean_action=np.asarray(meta.stats["action"]["mean"], dtype=np.float64),
    )
    offline = offline_report(replayed, joints, seed=config.seed)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([one.row(joints) for one in replayed]), draft.path / "heldout.parquet")
    versions = {name: version(name) for name in ("lerobot", "torch")}
    write_json(
        draft.path / "report.json",
        {"success": None, "offline": offline, "n_action_steps": config.rollout.n_action_steps, "versions": versions},
    )
    show(offline)
    metrics = {"success": None, "action_error": offline["action_error"]["value"], "episodes": offline["episodes"]}
    metrics |= {key: offline["action_error"][key] for key in ("low", "high")}
    return draft.publish(config=config.to_dict(), inputs=[artifact.as_input()] if artifact else [], metrics=metrics, device=config.device)


def _check_left_out(config: Config, artifact: Artifact, meta: LeRobotDatasetMetadata) -> None:
    """Stop where the training read episodes that are now to be held out."""
    trained = artifact.config["data"]
    if any(trained.get(key) != getattr(config.data, key) for key in ("manifest", "repo_id")):
        return  # another dataset
    check_identity(artifact.path, meta, "evaluate on what it was, or train again")
    if trained.get("heldout") != config.data.heldout:
        raise UserError(
            f"data.heldout={config.data.heldout}: the training left out {trained.get('heldout')} of the episodes, which are others; "
            f"give data.heldout={trained.get('heldout')}"
        )


def swaps(instructions: list[str]) -> dict[str, str]:
    """Each instruction with the next one of the dataset in its place; nothing where there is only one."""
    return dict(zip(instructions, [*instructions[1:], instructions[0]], strict=True)) if len(instructions) > 1 else {}


def joint_names(dataset: LeRobotDataset) -> list[str]:
    """What the dataset calls the action's dimensions, else their numbers."""
    feature = dataset.meta.features["action"]
    names, size = feature.get("names"), int(feature["shape"][0])
    while isinstance(names, dict) or (names and isinstance(names[0], list)):  # recorders nest them: {"motors": [...]}, [[...]]
        names = next(iter(names.values())) if isinstance(names, dict) else names[0]
    return [str(name) for name in names] if names and len(names) == size else [str(number) for number in range(size)]


def show(offline: dict[str, Any]) -> None:
    """The tables on the console."""
    every = {"all": {**offline["action_error"], "constant": offline["constant"]["value"]}}
    rows = [
        [name, *(f"{row[key]:.4g}" for key in ("value", "low", "high", "constant"))]
        for name, row in {**offline["by_joint"], **every}.items()
    ]
    title = f"action error on {offline['episodes']} held-out episodes, in the robot's units; beside it the demonstrations' mean action's"
    table(title, ["joint", "error", "95 % from", "to", "mean action"], rows)
    told = [[given, *(f"{row[key]:.4g}" for key in ("value", "low", "high"))] for given, row in offline["action_moved"].items()]
    table("language probe: how far the action moves", ["instruction", "moved by", "95 % from", "to"], told)
