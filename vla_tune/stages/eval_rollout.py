"""The `eval-rollout` stage: run a policy in closed loop on fixed seeds, and count its successes."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts import Artifact, Draft, write_json
from vla_tune.console import progress, table, warn
from vla_tune.data.recording import FIRST_SEED
from vla_tune.errors import UserError
from vla_tune.stages import eval_offline
from vla_tune.stages.subject import subject

if TYPE_CHECKING:
    from vla_tune.config import Config, RolloutConfig
    from vla_tune.rollout.episodes import Actor, Episode


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Score `train.path`, or `RUN/train`, on `rollout.episodes` episodes that no demonstration used.

    Without `rollout.tasks` there is no world to act in, and the policy is scored on the demonstrations that training left out.

    Raises:
        UserError: no such policy or task, a policy that does not fit the world, no GL backend.

    """
    with Draft(run / "eval-rollout", "eval-rollout", overwrite=overwrite) as draft:
        policy, artifact = subject(config, run)
        if not config.rollout.tasks:
            return eval_offline.evaluate(config, policy, artifact, draft)
        check_rollout(config.rollout)
        actor = open_actor(config, policy)
        began = time.monotonic()
        episodes, probed = run_episodes(actor, config.rollout)
        seconds = time.monotonic() - began
        report = make_report(config.rollout, episodes, probed)
        _write(draft.path, episodes, probed, report)
        show(report)
        success = report["success"]
        metrics = {
            "success": success["value"],
            "low": success["low"],
            "high": success["high"],
            "episodes": len(episodes),
            "mean_steps": report["mean_steps"],
            "episodes_per_minute": 60 * (len(episodes) + 2 * config.rollout.probe) / seconds,
        }
        return draft.publish(
            config=config.to_dict(), inputs=[artifact.as_input()] if artifact else [], metrics=metrics, device=config.device
        )


def check_rollout(config: RolloutConfig) -> None:
    """Tell what is wrong with the plan before a policy is loaded."""
    from vla_tune.rollout.probe import swap
    from vla_tune.rollout.worlds import MAX_STEPS, check_task, instruction

    for task in config.tasks:
        check_task(task)
        if config.tasks.count(task) > 1:
            raise UserError(f"rollout.tasks: '{task}' is there twice")
    if config.step_limit > MAX_STEPS:
        raise UserError(f"rollout.step_limit={config.step_limit}: Meta-World ends every episode after {MAX_STEPS} steps")
    if config.probe > config.episodes:
        raise UserError(f"rollout.probe={config.probe}: there are only rollout.episodes={config.episodes} to run again")
    for task in config.tasks if config.probe else []:
        swap(task, 0, config.tasks)
    last = config.first_seed + -(-config.episodes // len(config.tasks)) - 1
    if last >= FIRST_SEED:
        raise UserError(f"rollout.first_seed={config.first_seed}: seeds up to {last}; those from {FIRST_SEED} on are demonstrations'")
    told: dict[str, str] = {}
    for task in config.tasks:
        other = told.setdefault(instruction(task), task)
        if other != task:
            warn(f"rollout.tasks: {other} and {task} share one instruction: '{instruction(task)}'")


def open_actor(config: Config, path: str) -> Actor:
    """The policy and its processors, by lerobot's loaders, once it is sure that it reads what the world shows."""
    from vla_tune.policies.loading import load_policy, load_processors, renamed
    from vla_tune.rollout.episodes import Actor

    policy = load_policy(path, n_action_steps=config.rollout.n_action_steps, device=config.device)
    processors = load_processors(policy, path)
    names = renamed(processors[0])
    features = {**policy.config.input_features, **policy.config.output_features}
    picture = names.get("observation.image", "observation.image")
    if picture not in policy.config.image_features:
        known = ", ".join(policy.config.image_features) or "none"
        raise UserError(f"the policy '{path}' does not read 'observation.image', the picture that Meta-World shows; it reads: {known}")
    for key in ("observation.state", "action"):
        own = names.get(key, key)
        shape = tuple(features[own].shape) if own in features else None
        if shape != (4,):
            raise UserError(f"the policy '{path}' has '{key}' of shape {shape}; Meta-World's has shape (4,)")
    size = config.rollout.image_size
    trained = tuple(features[picture].shape)[1:]
    if trained != (size, size):
        warn(f"rollout.image_size={size}: the policy was trained on pictures of {trained[0]}x{trained[1]}")
    policy.eval()
    return Actor(policy, processors)


def run_episodes(actor: Actor, config: RolloutConfig) -> tuple[list[Episode], list[Episode]]:
    """All planned episodes, in the plan's order, and those of the language probe: its first ones, then the same told otherwise."""
    from vla_tune.rollout.episodes import Runner, plan
    from vla_tune.rollout.probe import plan_probe
    from vla_tune.rollout.worlds import close_renderers

    episodes = plan(config.tasks, config.episodes, config.first_seed, config.videos)
    right = episodes[: config.probe]
    told_otherwise = plan_probe(right, config.tasks)
    runner = Runner(actor, parallel=config.parallel, step_limit=config.step_limit, image_size=config.image_size)
    done: list[Episode] = []
    try:
        with progress("closed-loop episodes", len(episodes) + len(told_otherwise), "episodes") as counter:

            def count(episode: Episode) -> None:
                if episode.given == "right":
                    done.append(episode)
                counter.advance(note=f"success {sum(one.success for one in done)}/{len(done)}")

            runner.run([*episodes, *told_otherwise], count)
    finally:
        close_renderers()
    return episodes, right + told_otherwise


def make_report(config: RolloutConfig, episodes: list[Episode], probed: list[Episode]) -> dict[str, Any]:
    """Success overall and by task with Wilson 95 % intervals, the language probe, and what the figures depend on."""
    from vla_tune.rollout.probe import probe_report
    from vla_tune.rollout.success import wilson

    by_task = {}
    for task in dict.fromkeys(episode.task for episode in episodes):
        own = [episode for episode in episodes if episode.task == task]
        by_task[task] = {**wilson(sum(one.success for one in own), len(own)), "episodes": len(own), "instruction": own[0].instruction}
    return {
        "success": wilson(sum(episode.success for episode in episodes), len(episodes)),
        "by_task": by_task,
        "language_probe": probe_report(probed) if probed else None,
        "episodes": len(episodes),
        "mean_steps": sum(episode.steps for episode in episodes) / len(episodes),
        "n_action_steps": config.n_action_steps,
        "step_limit": config.step_limit,
        "first_seed": config.first_seed,
        "image_size": config.image_size,
        "versions": {name: version(name) for name in ("lerobot", "metaworld", "mujoco", "torch")},
    }


def _write(folder: Path, episodes: list[Episode], probed: list[Episode], report: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    from vla_tune.rollout.videos import write_video

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([episode.row() for episode in episodes]), folder / "episodes.parquet")
    if probed:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([episode.probe_row() for episode in probed]), folder / "probe.parquet")
    write_json(folder / "report.json", report)
    (folder / "videos").mkdir()
    for episode in episodes:
        if episode.recorded:
            outcome = "success" if episode.success else "failure"
            write_video(folder / "videos" / f"{episode.task}-seed{episode.seed}-{outcome}.mp4", episode.frames)


def show(report: dict[str, Any]) -> None:
    """The table on the console."""
    header = ["episodes", "success", "95 % from", "to"]
    rows = {**report["by_task"], "all": {**report["success"], "episodes": report["episodes"]}}
    table("closed-loop success", ["task", *header], _cells(rows))
    if probe := report["language_probe"]:
        rows = {name: row for name, row in probe.items() if row}
        title = "language probe: success of the original task; followed: the other ball, which it was told, was touched"
        table(title, ["instruction", *header], _cells(rows))


def _cells(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [[name, str(row["episodes"]), *(f"{100 * row[key]:.0f} %" for key in ("value", "low", "high"))] for name, row in rows.items()]
