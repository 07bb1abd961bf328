"""Recording Meta-World's scripted experts, and writing what they did as a LeRobotDataset v3.0."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_tune.console import progress
from vla_tune.data.demonstrations import recorded_features
from vla_tune.errors import RunError
from vla_tune.programs import cores
from vla_tune.simulators.metaworld.drawing import close_renderers
from vla_tune.simulators.metaworld.tasks import FIRST_SEED, check_task
from vla_tune.simulators.metaworld.world import FastMetaworldEnv

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from vla_tune.data.manifests import DemonstrationsManifest

GENERATOR_VERSION = 1
SEEDS_PER_TASK = 1000
STEP_LIMIT = 200
IMAGE, STATE, ACTION = "observation.image", "observation.state", "action"


@dataclass(frozen=True)
class Demonstration:
    """One successful episode of T steps: what was seen before each action, and the action.

    images: uint8 `[T, size, size, 3]`; states and actions: float32 `[T, 4]`, actions in -1..1.
    """

    seed: int
    instruction: str
    images: NDArray[np.uint8]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]


def record(manifest: DemonstrationsManifest) -> Iterator[list[Demonstration]]:
    """The demonstrations of each task, in the manifest's order; tasks are recorded side by side on the cores there are.

    Drawing and physics run outside Python's lock, so threads suffice. At most one task more than there are threads is held.
    """
    for task in manifest.tasks:
        check_task(task)
    threads = min(cores(), len(manifest.tasks))
    recorded: deque[Future[list[Demonstration]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in manifest.tasks:
                recorded.append(pool.submit(record_task, manifest, task))
                if len(recorded) > threads:
                    yield recorded.popleft().result()
            while recorded:
                yield recorded.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def record_task(manifest: DemonstrationsManifest, task: str) -> list[Demonstration]:
    """Run the task's expert on one seed after another until enough episodes succeeded.

    Raises:
        RunError: the expert fails too often.

    """
    size = manifest.image_size
    env = FastMetaworldEnv(task, obs_type="pixels_agent_pos", observation_width=size, observation_height=size, episode_length=STEP_LIMIT)
    first = FIRST_SEED + manifest.seed * SEEDS_PER_TASK
    attempts = min(2 * manifest.episodes_per_task + 10, SEEDS_PER_TASK)
    kept: list[Demonstration] = []
    try:
        for seed in range(first, first + attempts):
            episode = _run_expert(env, seed)
            if episode:
                kept.append(episode)
            if len(kept) == manifest.episodes_per_task:
                return kept
    finally:
        env.close()
        close_renderers()
    raise RunError(
        f"the scripted expert of {task} succeeded in {len(kept)} of {attempts} episodes, {manifest.episodes_per_task} are wanted; "
        f"lower episodes_per_task in the manifest or drop the task"
    )


def _run_expert(env: FastMetaworldEnv, seed: int) -> Demonstration | None:
    """One episode, until it succeeds; None where it does not within the step limit."""
    images, states, actions = [], [], []
    observation, _ = env.reset(seed=seed)
    for _ in range(STEP_LIMIT):
        action = np.clip(env.expert_policy.get_action(env.raw_observation), -1, 1).astype(np.float32)
        images.append(observation["pixels"])
        states.append(observation["agent_pos"].astype(np.float32))
        actions.append(action)
        observation, _, success, _, _ = env.step(action)
        if success:
            return Demonstration(seed, env.task_description, np.stack(images), np.stack(states), np.stack(actions))
    return None


def write_dataset(manifest: DemonstrationsManifest, repo_id: str, root: Path) -> None:
    """Record a manifest's demonstrations into a new LeRobotDataset at `root`, pictures as PNG."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create(
        repo_id,
        fps=FastMetaworldEnv.metadata["render_fps"],
        root=root,
        robot_type="sawyer",
        features=recorded_features(manifest.image_size),
        use_videos=False,
        video_backend="pyav",  # never used; looking for the default one prints tracebacks where FFmpeg is missing
    )
    with progress("recording demonstrations", len(manifest.tasks) * manifest.episodes_per_task, "episodes") as counter:
        for demonstrations in record(manifest):
            for demonstration in demonstrations:
                _add_episode(dataset, demonstration)
                counter.advance()
    dataset.finalize()


def _add_episode(dataset: LeRobotDataset, demonstration: Demonstration) -> None:
    for image, state, action in zip(demonstration.images, demonstration.states, demonstration.actions, strict=True):
        dataset.add_frame({IMAGE: image, STATE: state, ACTION: action, "task": demonstration.instruction})
    dataset.save_episode()
