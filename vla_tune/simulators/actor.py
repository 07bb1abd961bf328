"""A policy as the worlds see it: observations in, actions out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_tune.console import warn
from vla_tune.errors import UserError
from vla_tune.policies.loading import renamed
from vla_tune.simulators.base import Observation, Simulator
from vla_tune.simulators.noise import call_noise

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline


class Actor:
    """A policy with lerobot's processors around it, for several worlds at once.

    The noise of a call is drawn from the episode's seed and the call's number in it, so that an episode does not depend on
    which others share its batch.

    Args:
        processors: the policy's own, before and after it.
        world_processor: lerobot's for the environment, which comes before them.
        around: the context, given a processed batch, in which the policy acts on it.
    """

    def __init__(
        self,
        policy: PreTrainedPolicy,
        processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
        world_processor: PolicyProcessorPipeline,
        around: Callable[[dict[str, Any]], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._policy, (self._before, self._after), self._world = policy, processors, world_processor
        self._around = around

    def __call__(
        self, observations: list[Observation], instructions: list[str], noise_keys: list[tuple[str, int, int]]
    ) -> NDArray[np.float32]:
        """The actions to take, `[worlds, n_action_steps, action]`; `noise_keys` are (task, episode seed, number of the call)."""
        from lerobot.envs import preprocess_observation

        config = self._policy.config
        seen: dict[str, Any] = preprocess_observation(_stacked(observations))
        batch = self._before(self._world({**seen, "task": instructions}))
        noise = torch.stack([call_noise(*key, (config.chunk_size, config.max_action_dim)) for key in noise_keys])
        with torch.inference_mode(), self._around(batch):
            chunk = self._policy.predict_action_chunk(batch, noise=noise.to(config.device))
            actions: Tensor = self._after(chunk[:, : config.n_action_steps])
        return actions.cpu().numpy()


def trained_size(policy: PreTrainedPolicy, processor: PolicyProcessorPipeline, simulator: Simulator) -> int:
    """The edge of the pictures that the policy was trained on."""
    names, known = renamed(processor), policy.config.image_features
    return next(int(known[names.get(camera, camera)].shape[-1]) for camera in simulator.cameras if names.get(camera, camera) in known)


def check_fits(policy: PreTrainedPolicy, processor: PolicyProcessorPipeline, simulator: Simulator, path: str = "") -> None:
    """Whether a policy reads what a simulator shows, and does what its robot can.

    Raises:
        UserError: it does not; `path` is where the policy lies, where it lies somewhere.

    """
    called = f"the policy '{path}'" if path else "the policy"
    names, known = renamed(processor), policy.config.image_features
    shown = {names.get(camera, camera) for camera in simulator.cameras} & set(known)
    if not shown:
        raise UserError(
            f"{called} does not read '{simulator.cameras[0]}', the picture that {simulator.title} shows; "
            f"it reads: {', '.join(known) or 'none'}"
        )
    if unseen := set(known) - shown:
        warn(f"{called} also reads {', '.join(sorted(unseen))}, which {simulator.title} does not show")
    features = {**policy.config.input_features, **policy.config.output_features}
    for key, width in (("observation.state", simulator.state), ("action", simulator.action)):
        own = names.get(key, key)
        shape = tuple(features[own].shape) if own in features else None
        if shape != (width,):
            raise UserError(f"{called} has '{key}' of shape {shape}; {simulator.title}'s has shape ({width},)")


def _stacked(observations: list[Observation]) -> Observation:
    first = observations[0]
    return {
        key: _stacked([one[key] for one in observations]) if isinstance(first[key], dict) else np.stack([one[key] for one in observations])
        for key in first
    }
