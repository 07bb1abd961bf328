"""The `eval-rollout` stage: run a policy in closed loop on fixed seeds, and count its successes."""

from __future__ import annotations

import dataclasses
import functools
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.artifacts.folder import Artifact, Draft, files_table, table_digest, write_json
from vla_tune.console import progress, table, warn
from vla_tune.errors import UserError
from vla_tune.policies.devices import on_device
from vla_tune.simulators import episode_log
from vla_tune.simulators.episode_log import EpisodeLog
from vla_tune.stages import eval_offline, stream
from vla_tune.stages.subject import subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from vla_tune.config import Config, RolloutConfig
    from vla_tune.simulators.actor import Actor
    from vla_tune.simulators.base import Simulator
    from vla_tune.simulators.episodes import Episode

    type Run = Callable[[list[Episode], Callable[[Episode], None]], None]


def run(config: Config, run: Path, *, overwrite: bool = False) -> Artifact:
    """Score `train.path`, or `RUN/train`, on `rollout.episodes` episodes that no demonstration used.

    Interrupted, it keeps the episodes that are done, and the same command goes on from them. Without `rollout.tasks` there is
    no simulator, and the policy is scored on the demonstrations that training left out.

    Raises:
        UserError: no such policy or task, a policy that does not fit the world, no GL backend.

    """
    config = on_device(config)
    if config.stream.tasks:
        return stream.evaluate_rollouts(config, run, overwrite=overwrite)
    resumable = bool(config.rollout.tasks) and not config.rollout.compat
    keep = (*episode_log.FILES, episode_log.VIDEOS) if resumable else ()
    with Draft(run / "eval-rollout", "eval-rollout", overwrite=overwrite, keep=keep, drop=episode_log.FILES) as draft:
        policy, artifact = subject(config, run)
        if not config.rollout.tasks:
            return eval_offline.evaluate(config, policy, artifact, draft)
        inputs = [artifact.as_input()] if artifact else _as_inputs(policy)
        if done := draft.finished(config.to_dict(), inputs):
            return done
        evaluation = Evaluation(config, policy)
        log = EpisodeLog(draft.path, evaluation.basis(inputs))
        pace = evaluation.run(log)
        report = evaluation.report()
        _write(draft.path, evaluation, report)
        show(report)
        success = report["success"]
        metrics = {
            "success": success["value"],
            "low": success["low"],
            "high": success["high"],
            "episodes": len(evaluation.episodes),
            "mean_steps": report["mean_steps"],
            "episodes_per_minute": pace,
        }
        return draft.publish(config=config.to_dict(), inputs=inputs, metrics=metrics, device=config.device)


def _as_inputs(policy: str) -> list[dict[str, str]]:
    """How an artifact names a policy folder that no train artifact holds; one on the Hub has no digest here."""
    folder = Path(policy)
    return [{"stage": "policy", "path": policy, "digest": table_digest(files_table(folder))}] if folder.is_dir() else []


class Evaluation:
    """Planned episodes of one policy.

    Raises:
        UserError: no such task, or a plan that the simulator does not allow.

    """

    def __init__(self, config: Config, policy: str) -> None:
        from vla_tune.simulators.episodes import plan
        from vla_tune.simulators.probe import plan_probe

        self._config, self._policy = config, policy
        settings = config.rollout
        self.simulator, tasks = check_rollout(settings)
        instructions = {task: self.simulator.instruction(task) for task in tasks}
        self.episodes = plan(instructions, settings.episodes, settings.first_seed, settings.videos if not settings.compat else 0)
        self.probed = self.episodes[: settings.probe]
        self.probed += plan_probe(self.probed, tasks, self.simulator)
        self.limits = {task: settings.step_limit or self.simulator.step_limit(task) for task in tasks}

    def basis(self, inputs: list[dict[str, str]]) -> dict[str, Any]:
        """All that an episode's result depends on."""
        free = ("parallel", "processes")
        shaping = {key: value for key, value in dataclasses.asdict(self._config.rollout).items() if key not in free}
        versions = {**self._versions(), "vla-tune": version("vla-tune")}
        return {"policy": self._policy, "inputs": inputs, "rollout": shaping, "versions": versions, "device": self._config.device}

    def run(self, log: EpisodeLog) -> float:
        """Run what is not done yet, and keep each episode as it ends; how many a minute."""
        settings = self._config.rollout
        everything = self.episodes + self.probed[settings.probe :]
        run_episodes = self._run_as_lerobot if settings.compat else self._run_together()
        left = log.restore(everything)
        began = time.monotonic()
        try:
            with progress("closed-loop episodes", len(everything), "episodes") as counter:
                counter.skip(len(everything) - len(left))

                def keep(episode: Episode) -> None:
                    if not settings.compat:
                        log.add(episode)
                    ended = [one for one in self.episodes if one.steps]
                    counter.advance(note=f"success {sum(one.success for one in ended)}/{len(ended)}")

                run_episodes(left, keep)
        except KeyboardInterrupt:
            if counter.done and not settings.compat:
                warn(f"{counter.done} episodes are done and kept; the same command goes on from them")
            raise
        finally:
            self.simulator.close()
        return 60 * len(left) / (time.monotonic() - began)

    def _run_together(self) -> Run:
        """Our own loop, with the policy opened."""
        from vla_tune.simulators.chunks import world_maker
        from vla_tune.simulators.runner import Runner

        settings, simulator = self._config.rollout, self.simulator
        actor, size = open_actor(self._config, self._policy, simulator)

        maker = world_maker(simulator, size, settings.step_limit)
        return Runner(actor, maker, parallel=settings.parallel, processes=settings.processes).run

    def _run_as_lerobot(self, episodes: list[Episode], on_done: Callable[[Episode], None]) -> None:
        from vla_tune.policies.loading import policy_config
        from vla_tune.simulators.compat import run_as_lerobot_eval

        settings = self._config.rollout
        known = policy_config(self._policy).image_features
        shown = [known[camera] for camera in self.simulator.cameras if camera in known] or list(known.values())
        size = settings.image_size or next((int(feature.shape[-1]) for feature in shown), 0)
        load = functools.partial(open_policy, self._config, self._policy, self.simulator)
        run_as_lerobot_eval(episodes, self.simulator, settings, size, load, on_done)

    def _versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.simulator.packages}

    def report(self) -> dict[str, Any]:
        """Success overall, by task and by group with 95 % intervals, the language probe, and what the figures depend on."""
        from vla_tune.simulators.probe import probe_report
        from vla_tune.stats.intervals import mean_rate

        settings, simulator = self._config.rollout, self.simulator
        by_task: dict[str, dict[str, Any]] = {}
        groups: dict[str, list[Episode]] = {}
        for task in dict.fromkeys(episode.task for episode in self.episodes):
            own = [episode for episode in self.episodes if episode.task == task]
            by_task[task] = {**rate(own), "instruction": own[0].instruction, "step_limit": self.limits[task]}
            groups.setdefault(simulator.group(task) or "other", []).extend(own)
        by_group = {name: rate(own) for name, own in groups.items()}
        limits = set(self.limits.values())
        return {
            "success": {key: value for key, value in rate(self.episodes).items() if key != "episodes"},
            "by_task": by_task,
            "by_group": by_group,
            "mean_of_groups": mean_rate(list(by_group.values())) if len(by_group) > 1 else None,
            "language_probe": probe_report(self.probed, simulator) if self.probed else None,
            "episodes": len(self.episodes),
            "mean_steps": sum(episode.steps for episode in self.episodes) / len(self.episodes),
            "n_action_steps": settings.n_action_steps,
            "step_limit": limits.pop() if len(limits) == 1 else None,
            "first_seed": settings.first_seed,
            "image_size": settings.image_size,
            "compat": settings.compat,
            "versions": self._versions(),
        }


def rate(episodes: list[Episode]) -> dict[str, Any]:
    """The share that succeeded with its Wilson 95 % interval, and of how many."""
    from vla_tune.stats.intervals import wilson

    return {**wilson(sum(episode.success for episode in episodes), len(episodes)), "episodes": len(episodes)}


def check_rollout(config: RolloutConfig) -> tuple[Simulator, list[str]]:
    """The simulator and the tasks that are asked for; tells what is wrong with the plan before a policy is loaded."""
    from vla_tune.simulators.episodes import check_plan
    from vla_tune.simulators.probe import swap
    from vla_tune.simulators.registry import simulator_of, tasks_of

    simulator = simulator_of(config.tasks)
    tasks = tasks_of(simulator, config.tasks)
    if config.probe > config.episodes:
        raise UserError(f"rollout.probe={config.probe}: there are only rollout.episodes={config.episodes} to run again")
    for task in tasks if config.probe else []:
        swap(task, 0, tasks, simulator)
    check_plan(config, simulator, tasks)
    if config.compat:
        _check_compat(config, simulator)
    simulator.prepare()
    told: dict[str, str] = {}
    for task in tasks:
        other = told.setdefault(simulator.instruction(task), task)
        if other != task:
            warn(f"rollout.tasks: {other} and {task} share one instruction: '{simulator.instruction(task)}'")
    return simulator, tasks


def _check_compat(config: RolloutConfig, simulator: Simulator) -> None:
    if simulator.incomparable:
        raise UserError(f"rollout.compat=lerobot-eval: {simulator.incomparable}; leave it out")
    if config.probe:
        raise UserError(f"rollout.probe={config.probe}: lerobot-eval has no language probe; leave out rollout.compat")
    if config.videos != type(config).videos:
        warn(f"rollout.videos={config.videos}: none are made with rollout.compat=lerobot-eval")


def open_actor(config: Config, path: str, simulator: Simulator) -> tuple[Actor, int]:
    """The policy behind lerobot's processors for this environment and its own, and the edge of the pictures to show it."""
    from vla_tune.simulators.actor import Actor, trained_size

    policy, processors = open_policy(config, path, simulator)
    size = trained_size(policy, processors[0], simulator)
    if config.rollout.image_size not in (None, size):
        warn(f"rollout.image_size={config.rollout.image_size}: the policy was trained on pictures of {size}x{size}")
    size = config.rollout.image_size or size
    return Actor(policy, processors, simulator.processor()), size


def open_policy(
    config: Config, path: str, simulator: Simulator
) -> tuple[PreTrainedPolicy, tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]]:
    """The policy and its processors, by lerobot's loaders, once it is sure that it reads what the world shows."""
    from vla_tune.policies.loading import load_policy, load_processors
    from vla_tune.simulators.actor import check_fits

    policy = load_policy(path, n_action_steps=config.rollout.n_action_steps, device=config.device)
    processors = load_processors(policy, path)
    check_fits(policy, processors[0], simulator, path)
    return policy.eval(), processors


def _write(folder: Path, evaluation: Evaluation, report: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [episode.row() for episode in evaluation.episodes]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "episodes.parquet")
    if evaluation.probed:
        rows = [episode.probe_row() for episode in evaluation.probed]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "probe.parquet")
    write_json(folder / "report.json", report)
    (folder / episode_log.VIDEOS).mkdir(exist_ok=True)


def show(report: dict[str, Any]) -> None:
    """The tables on the console."""
    header = ["episodes", "success", "95 % from", "to"]
    rows = {**report["by_task"], "all": {**report["success"], "episodes": report["episodes"]}}
    if mean := report["mean_of_groups"]:
        rows |= {**report["by_group"], "mean of groups": {**mean, "episodes": report["episodes"]}}
    table("closed-loop success", ["task", *header], _cells(rows))
    if probe := report["language_probe"]:
        rows = {name: row for name, row in probe.items() if row}
        title = "language probe: success of the original task; followed: the other ball, which it was told, was touched"
        table(title, ["instruction", *header], _cells(rows))


def _cells(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [[name, str(row["episodes"]), *(f"{100 * row[key]:.0f} %" for key in ("value", "low", "high"))] for name, row in rows.items()]
