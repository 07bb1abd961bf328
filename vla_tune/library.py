"""A method in somebody else's training loop: the engine's step in two calls, around a stock lerobot policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_tune.anchors.artifact import Anchor, check_compatible, load_anchor
from vla_tune.config import MethodConfig
from vla_tune.engine.log import as_number
from vla_tune.engine.reduce import reduce
from vla_tune.learners.policy import PolicyLearner
from vla_tune.methods import method_class
from vla_tune.policies import adapt
from vla_tune.policies.weights import weights_digest

if TYPE_CHECKING:
    import torch
    from lerobot.policies.pretrained import PreTrainedPolicy
    from torch import Tensor

    from vla_tune.methods.base import Method
    from vla_tune.vqa.replay import ReplayQuestions

__all__ = ["PolicyMethod", "load_anchor", "make_method"]


class PolicyMethod:
    """A method on a policy, for a training loop that calls `backward`, clips, and calls `step`; for a single process.

    method: what does the work.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def backward(self, batch: dict[str, Any]) -> Tensor:
        """Forward, backward passes and the method's work on the gradients; leaves `.grad` ready for clipping and the optimizer.

        Returns:
            The task's loss, detached.

        """
        losses, self._shown, gradients = reduce(self.method, batch)
        self.method.combine(gradients)
        return losses["task"]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, with whatever the method does around it; gradients are cleared."""
        self.method.before_update()
        optimizer.step()
        optimizer.zero_grad()
        self.method.steps += 1
        self.method.after_update()

    def finish(self, folder: str | Path) -> None:
        """Make the policy a stock one again, once, at the end; what is worth keeping (LoRA's adapter) goes into the folder."""
        self.method.finish(Path(folder))

    @property
    def policy(self) -> PreTrainedPolicy:
        """The policy that it trains."""
        policy: PreTrainedPolicy = self.method.adapter.policy
        return policy

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What an optimizer is made with: torch's parameter groups, a learning rate where it is not `lr`."""
        return self.method.parameter_groups(lr)

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Of the last step, in plain numbers: the losses that the method shows, and what it measured."""
        return {name: as_number(value) for name, value in {**self._shown, **self.method.diagnostics}.items()}


def make_method(
    name: str,
    policy: PreTrainedPolicy,
    *,
    anchor: Anchor | None = None,
    settings: MethodConfig | None = None,
    memory: ReplayQuestions | None = None,
) -> PolicyMethod:
    """Prepare a policy for a method, in place.

    Args:
        name: one of `vla_tune.config.METHODS`.
        policy: a stock lerobot policy with an adapter.
        anchor: from `load_anchor`; checked against the policy's VLM.
        settings: the method's options; default: those of `MethodConfig`.
        memory: VQA questions with answers, for the methods that go on reading them.

    Raises:
        UserError: unknown method, no anchor where one is needed, an anchor of another backbone.

    """
    kind = method_class(name)
    check_anchor(anchor, policy)
    return PolicyMethod(kind(PolicyLearner(policy), settings or MethodConfig(name=name), anchor, memory))


def check_anchor(anchor: Anchor | None, policy: PreTrainedPolicy) -> None:
    """Stop with a UserError where an anchor was not taken from the policy's VLM."""
    if anchor is not None:
        adapter = adapt(policy)
        check_compatible(anchor, layers=len(adapter.layers()), width=adapter.width, backbone=weights_digest(adapter.vlm.state_dict()))
