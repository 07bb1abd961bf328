"""A policy on demonstrations that training left out, where there is no simulator: how far its actions are from theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_tune.console import progress
from vla_tune.simulators.noise import call_noise
from vla_tune.simulators.probe import GIVEN
from vla_tune.stats import bootstrap
from vla_tune.stats.intervals import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

RESAMPLES = 2000

type Floats = NDArray[np.float64]


@dataclass
class Replayed:
    """One held-out episode: means over the actions that its policy calls would have executed, in the robot's units.

    actions: how many these are. error: `[joints]`, mean absolute difference to the demonstration's. constant: the same of a policy
    that always does the demonstrations' mean action. moved: by what was told instead, `[joints]`, mean absolute change of the action.
    """

    episode: int
    instruction: str
    actions: int
    error: Floats
    constant: Floats
    moved: dict[str, Floats]

    def row(self, joints: list[str]) -> dict[str, Any]:
        """As `heldout.parquet` holds it."""
        errors = {f"error.{joint}": float(value) for joint, value in zip(joints, self.error, strict=True)}
        moved = {f"moved.{given}": float(values.mean()) for given, values in self.moved.items()}
        row = {"episode": self.episode, "instruction": self.instruction, "actions": self.actions, "error": float(self.error.mean())}
        return {**row, **moved, **errors}


def replay(
    policy: PreTrainedPolicy,
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
    batches: Iterable[dict[str, Any]],
    *,
    calls: int,
    other_instruction: dict[str, str],
    mean_action: Floats,
) -> list[Replayed]:
    """Call the policy where an execution of the demonstration would have, under the right, another and no instruction.

    All three calls draw the same noise, which follows from the episode and the frame.

    Args:
        batches: of frames as the dataset gives them, in order. calls: how many there are in all.
        other_instruction: by instruction, which one is told in its place; without an entry it is not swapped.
        mean_action: `[joints]`, in the robot's units.

    """
    before, after = processors
    steps, chunk = policy.config.n_action_steps, (policy.config.chunk_size, policy.config.max_action_dim)
    sums: dict[int, dict[str, Any]] = {}
    with progress("held-out demonstrations", calls, "calls") as counter:
        for batch in batches:
            told = {"right": batch["task"], "empty": [""] * len(batch["task"])}
            if all(one in other_instruction for one in batch["task"]):
                told["swapped"] = [other_instruction[one] for one in batch["task"]]
            places = list(zip(batch["episode_index"].tolist(), batch["frame_index"].tolist(), strict=True))
            noise = torch.stack([call_noise("held-out", episode, frame, chunk) for episode, frame in places])
            actions = {}
            for given, tasks in told.items():
                with torch.inference_mode():
                    inputs = before({**batch, "task": tasks})
                    predicted = policy.predict_action_chunk(inputs, noise=noise.to(policy.config.device))
                    actions[given] = after(predicted[:, :steps]).double().cpu().numpy()
            wanted = batch["action"][:, :steps].double().numpy()
            inside = ~batch["action_is_pad"][:, :steps].numpy()
            for row, (episode, _) in enumerate(places):
                here = sums.setdefault(
                    episode, {"instruction": batch["task"][row], "actions": 0, "error": 0.0, "constant": 0.0, "moved": {}}
                )
                real = inside[row]
                here["actions"] += int(real.sum())
                here["error"] += np.abs(actions["right"][row] - wanted[row])[real].sum(0)
                here["constant"] += np.abs(mean_action - wanted[row])[real].sum(0)
                for given in told.keys() - {"right"}:
                    change = np.abs(actions[given][row] - actions["right"][row])[real].sum(0)
                    here["moved"][given] = here["moved"].get(given, 0.0) + change
            counter.advance(len(places))
    return [
        Replayed(
            episode,
            one["instruction"],
            one["actions"],
            one["error"] / one["actions"],
            one["constant"] / one["actions"],
            {given: change / one["actions"] for given, change in one["moved"].items()},
        )
        for episode, one in sorted(sums.items())
    ]


def offline_report(replayed: list[Replayed], joints: list[str], *, seed: int) -> dict[str, Any]:
    """Action error overall, by joint and by task, and how far another or no instruction moves the action; 95 % bootstrap over episodes.

    `constant` is the error of the demonstrations' mean action: no better than that means nothing was learnt.
    """
    weights = np.array([one.actions for one in replayed], dtype=np.float64)
    errors, constant = np.stack([one.error for one in replayed]), np.stack([one.constant for one in replayed])
    drawn = bootstrap.draws(len(weights), RESAMPLES, np.random.default_rng(seed))

    def mean(values: Floats, chosen: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        kept = weights if chosen is None else weights * chosen
        resampled = bootstrap.ratio(drawn @ (kept * values), drawn @ kept)
        return {"value": float((kept * values).sum() / kept.sum()), **percentile(resampled)}

    tasks = np.array([one.instruction for one in replayed])
    probe = {}
    for given in GIVEN[1:]:
        told = np.array([given in one.moved for one in replayed])
        if told.any():
            probe[given] = mean(np.array([one.moved[given].mean() if given in one.moved else 0.0 for one in replayed]), told)
    return {
        "action_error": mean(errors.mean(1)),
        "constant": mean(constant.mean(1)),
        "by_joint": {
            joint: {**mean(errors[:, number]), "constant": mean(constant[:, number])["value"]} for number, joint in enumerate(joints)
        },
        "by_task": {
            task: {**mean(errors.mean(1), tasks == task), "episodes": int((tasks == task).sum())} for task in dict.fromkeys(tasks.tolist())
        },
        "action_moved": probe,
        "episodes": len(replayed),
        "actions": int(weights.sum()),
    }
