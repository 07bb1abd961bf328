"""The interface of a fine-tuning method, and the backward pass that all of them share.

A method says what is trained and what becomes of the gradients. The training loop owns everything else: data,
clipping, the optimizer, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.errors import UserError
from vla_tune.policies import adapt

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import MethodConfig
    from vla_tune.vqa.replay import ReplayQuestions

Gradients = dict[str, Tensor]
"""Full parameter name to gradient."""


class Method:
    """One way to fine-tune a policy; subclasses override what differs from plain fine-tuning.

    Args:
        policy: a stock lerobot policy, changed in place (frozen, wrapped).
        settings: the method's part of the configuration.
        anchor: the statistics that some methods hold on to.
        memory: the VQA questions that some methods go on reading.

    Raises:
        UserError: the method needs an anchor or questions and got none, or a freeze rule matches no parameter.

    """

    name: ClassVar[str]
    needs_anchor: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    """Whether there is anything to optimise; without, the policy is done once the method is made."""

    def __init__(
        self, policy: PreTrainedPolicy, settings: MethodConfig, anchor: Anchor | None = None, memory: ReplayQuestions | None = None
    ) -> None:
        if self.needs_anchor and anchor is None:
            raise UserError(f"method '{self.name}' needs an anchor artifact; make one with `vla-tune anchor`")
        if self.needs_memory and memory is None:
            raise UserError(f"method '{self.name}' needs VQA questions with answers; set vqa.manifest")
        self.policy, self.settings, self.anchor, self._memory = policy, settings, anchor, memory
        self.adapter = adapt(policy)
        self.diagnostics: dict[str, Any] = {}
        self.steps = 0
        """Optimizer steps taken; a resumed run sets it."""
        self.extras = nn.ModuleDict()
        """What trains beside the policy without being a part of it; checkpoints hold it, the exported policy does not."""
        self.prepare()

    @property
    def memory(self) -> ReplayQuestions:
        """The VQA questions of a method that needs them."""
        assert self._memory is not None
        return self._memory

    def prepare(self) -> None:
        """Freeze and wrap, before the optimizer is made."""

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The named scalars of one batch, on one graph; the first is the task's."""
        loss, _ = self.policy.forward(batch)
        return {"task": loss}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimizer is made with: torch's parameter groups, a learning rate where it is not `lr`."""
        return [{"params": [*self.policy.get_optim_params(), *self.extras.parameters()]}]

    def trained(self, part: str) -> dict[str, nn.Parameter]:
        """The parameters of a part of the policy (a group, or `vlm` for all of `vlm.*`) that train, by full name."""
        groups = self.adapter.groups().items()
        return {n: p for group, ps in groups if f"{group}.".startswith(f"{part}.") for n, p in ps.items() if p.requires_grad}

    def combined_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters whose gradients `combine` needs loss by loss; the others follow the task alone."""
        return {}

    def reached_by(self, loss: str) -> dict[str, nn.Parameter]:
        """Those of the `combined_parameters` that a loss other than the task's gives a gradient to."""
        return self.combined_parameters()

    def combine(self, gradients: dict[str, Gradients]) -> dict[str, Any]:
        """Change `gradients["task"]` in place; returns the diagnostics, a list per layer or one number each."""
        raise NotImplementedError

    def backward(self, batch: dict[str, Any], backward: Callable[..., None] = Tensor.backward) -> Tensor:
        """Forward, a backward pass a loss on the one graph, combination; leaves `.grad` ready for clipping.

        Args:
            backward: called as `backward(loss, retain_graph=..., inputs=...)`; accelerate's takes its place.

        Returns:
            The task's loss, detached.

        """
        losses = self.losses(batch)
        task = losses.pop("task")
        backward(task, retain_graph=bool(losses))
        if shared := self.combined_parameters():
            gradients = {"task": _take_gradients(shared)}
            for number, (name, loss) in enumerate(losses.items(), start=1):
                reached = self.reached_by(name)
                backward(loss, retain_graph=number < len(losses), inputs=list(reached.values()))
                gradients[name] = _take_gradients(reached)
            self.diagnostics = self.combine(gradients)
            for name, parameter in shared.items():
                parameter.grad = gradients["task"][name]
        return task.detach()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step and what the method does around it; gradients are cleared."""
        self.update(optimizer)
        optimizer.zero_grad()
        self.steps += 1

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the parameters."""
        optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs of the method beside the policy, the optimizer and `steps`."""
        return dict(self.extras.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a `state_dict`."""
        self.extras.load_state_dict(state)

    def finish(self, folder: Path) -> None:
        """Undo wrapping, so that the policy is a stock one again; what is worth keeping goes into `folder`."""

    def freeze(self, *groups: str) -> None:
        """Freeze whole groups by name (`vlm` covers all of `vlm.*`).

        Raises:
            UserError: a name matches no parameter, which would leave it training without a word.

        """
        for rule in groups:
            matched = [p for group, ps in self.adapter.groups().items() if f"{group}.".startswith(f"{rule}.") for p in ps.values()]
            if not matched:
                known = ", ".join(sorted(self.adapter.groups()))
                raise UserError(f"method '{self.name}': the freeze rule '{rule}' matches no parameter; groups: {known}")
            for parameter in matched:
                parameter.requires_grad = False

    def require_trainable_vlm(self) -> None:
        """Stop where lerobot has frozen the whole VLM, which leaves this method nothing to do."""
        if not self.trained("vlm"):
            raise UserError(
                f"method '{self.name}' trains the VLM, but the policy freezes all of it (train_expert_only is true, lerobot's "
                "default); set policy.settings.train_expert_only=false, or use method.name=frozen"
            )

    def require_answers(self) -> None:
        """Stop where the policy has cut the VLM, whose lower layers alone cannot answer questions."""
        text: Any = self.adapter.vlm.config.text_config  # which goes on naming the depth of the whole VLM
        here, whole = len(self.adapter.layers()), text.num_hidden_layers
        if here < whole:
            raise UserError(
                f"method '{self.name}' reads the VLM's answers, but the policy has cut the VLM to {here} of its {whole} layers; "
                "set policy.settings.num_vlm_layers=0 on a new policy, or use a method that asks no questions"
            )

    def require_questions(self, samples: int) -> None:
        """Stop where the option `samples` asks for more questions than there are."""
        if samples > len(self.memory.questions):
            raise UserError(f"method.{self.name}.samples={samples}: vqa.manifest has {len(self.memory.questions)} questions to learn from")


class Summed(Method):
    """Methods whose loss is the task's plus `weight` times a second one, in one backward pass.

    The step's figures show both, the second without its weight.
    """

    weight: float

    def backward(self, batch: dict[str, Any], backward: Callable[..., None] = Tensor.backward) -> Tensor:
        losses = self.losses(batch)
        self.diagnostics = {name: loss.item() for name, loss in losses.items()}
        task, second = losses.values()
        backward(task + self.weight * second)
        return task.detach()


def _take_gradients(parameters: dict[str, nn.Parameter]) -> Gradients:
    """Move the gradients out of the parameters; one that no loss reached is zero."""
    taken = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return taken
