"""The interface of a method: what trains, which losses a step has, and what becomes of their gradients.

The engine owns everything else: data, backward passes, clipping, the optimizer, checkpoints. Plain training is a stream of one task.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.errors import UserError

if TYPE_CHECKING:
    from vla_tune.anchors.artifact import Anchor
    from vla_tune.config import MethodConfig
    from vla_tune.experts.tasks import TaskRouter
    from vla_tune.learners.base import Learner
    from vla_tune.policies.base import PolicyAdapter
    from vla_tune.vqa.replay import ReplayQuestions

Gradients = dict[str, Tensor]
"""Full parameter name to gradient."""
Parameters = dict[str, nn.Parameter]
"""Full parameter name to parameter."""


@dataclass(frozen=True)
class Term:
    """A named loss of a step.

    value: a scalar.
    weight: what it counts in the sum that it is a part of. Terms with the same `into` share a sum and a backward pass.
    into: the parameters that it gives a gradient to; None: all that train.
    apart: its gradient joins no other: `Method.combine` gets it under the term's name.
    shown: whether the log shows its value.
    mean: whether it is a mean, which a batch that comes in micro-batches is to be the mean over; else the parts' values are summed.
    """

    value: Tensor
    weight: float = 1.0
    into: Parameters | None = None
    apart: bool = False
    shown: bool = False
    mean: bool = True


@dataclass(frozen=True)
class Part:
    """Which micro-batch of a batch this is: number `index` of `of`; `samples`: of the whole batch, 0 where it comes whole."""

    index: int = 0
    of: int = 1
    samples: int = 0

    def rows(self, count: int) -> slice:
        """Its share of `count` samples that a method brings itself; it may be none."""
        return slice(count * self.index // self.of, count * (self.index + 1) // self.of)


WHOLE = Part()


class Method:
    """One way to train a model, task after task; subclasses override what differs from plain fine-tuning.

    Args:
        learner: the model, changed in place (frozen, wrapped), with its tasks.
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
    routes: ClassVar[bool] = False
    """Whether samples have to be told apart by task at deployment."""
    router: TaskRouter | None = None
    """What tells them apart."""

    def __init__(
        self, learner: Learner, settings: MethodConfig, anchor: Anchor | None = None, memory: ReplayQuestions | None = None
    ) -> None:
        if self.needs_anchor and anchor is None:
            raise UserError(f"method '{self.name}' needs an anchor artifact; make one with `vla-tune anchor`")
        if self.needs_memory and memory is None:
            raise UserError(f"method '{self.name}' needs VQA questions with answers; set vqa.manifest")
        self.learner, self.settings, self.anchor, self._memory = learner, settings, anchor, memory
        self.diagnostics: dict[str, Any] = {}
        """Of the last step, for the log: a number or a list per layer; tensors stay on the device."""
        self.task, self.steps = 0, 0
        """The task that is learnt, and the optimizer's steps taken in it; the engine sets them."""
        self.part = WHOLE
        """The micro-batch at hand; the engine sets it."""
        self.extras = nn.ModuleDict()
        """What trains beside the model without being a part of it; checkpoints hold it, the exported policy does not."""
        self.prepare()

    @property
    def model(self) -> nn.Module:
        return self.learner.model

    @property
    def adapter(self) -> PolicyAdapter:
        """The policy's, where the model is one."""
        assert self.learner.adapter is not None
        return self.learner.adapter

    @property
    def memory(self) -> ReplayQuestions:
        """The VQA questions of a method that needs them."""
        assert self._memory is not None
        return self._memory

    # Before and after.

    def prepare(self) -> None:
        """Freeze and wrap, once."""

    def look(self, task: int) -> None:
        """Look at a task's samples before anything is added for it."""

    def begin(self, task: int) -> None:
        """Add what a task needs, before its optimizer is made."""

    def resume(self, task: int) -> None:
        """After `load_state_dict` of a checkpoint in the middle of a task: what trains, trains again."""

    def end(self, task: int) -> None:
        """Settle what a task leaves, after its last step."""

    def finish(self, folder: Path) -> None:
        """Undo wrapping, so that the policy is a stock one again; what is worth keeping goes into `folder`."""

    # What trains.

    def parameters(self) -> list[nn.Parameter]:
        """What trains now."""
        return [p for module in (self.model, self.extras) for p in module.parameters() if p.requires_grad]

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """What the optimizer is made with: torch's parameter groups, a learning rate where it is not `lr`."""
        return [{"params": self.parameters()}]

    def trained(self, part: str) -> Parameters:
        """The parameters of a part of the policy (a group, or `vlm` for all of `vlm.*`) that train, by full name."""
        groups = self.adapter.groups().items()
        return {n: p for group, ps in groups if f"{group}.".startswith(f"{part}.") for n, p in ps.items() if p.requires_grad}

    # The step.

    def terms(self, batch: Any) -> dict[str, Term]:
        """The losses of one batch by name; the first is the task's."""
        with self.routed(self.task):
            return {"task": Term(self.learner.loss(batch))}

    def survey(self, batch: Any) -> dict[str, Tensor | int]:
        """Over how many elements each term of a micro-batch is a mean, by the term's name; one that is not named counts once.

        Called for every micro-batch of a batch before the first is trained on, without gradients; not where the batch is whole. A
        method whose loss is a statistic of the whole batch gathers it here.

        Raises:
            UserError: the method cannot take a batch in parts.

        """
        return {"task": self.learner.count(batch)}

    def combine(self, gradients: dict[str, Gradients]) -> None:
        """Work on the gradients that the parameters hold; those of terms `apart` come by the terms' names."""

    def before_update(self) -> None:
        """Look at the parameters right before the optimizer changes them."""

    def after_update(self) -> bool:
        """Look after the parameters once the optimizer has changed them; whether `parameters` are others now."""
        return False

    # Routing, for methods that keep tasks apart.

    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> AbstractContextManager[None]:
        """Forward passes in here are those of these tasks: one for all samples, a number a sample (negative: none), or none at all.

        pictures: how many each sample has, where they are not all as many.
        """
        return nullcontext()

    def as_stock(self) -> AbstractContextManager[None]:
        """In here the model's modules and names are those that its library made."""
        return nullcontext()

    def merged(self, task: int) -> AbstractContextManager[None] | None:
        """In here the model is a stock one that knows one task; None where the method does not keep tasks apart, or cannot."""
        return None

    # State.

    def state_dict(self) -> dict[str, Tensor]:
        """What training has changed or added: with the model that it started from, everything."""
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {**trained, **{f"extras:{name}": tensor for name, tensor in self.extras.state_dict().items()}}

    def load_state_dict(self, state: dict[str, Tensor], note: str = "{}") -> None:
        """Go back to a `state_dict` and its `note`.

        Raises:
            KeyError: it is of other parameters.

        """
        extras = {name.removeprefix("extras:"): tensor for name, tensor in state.items() if name.startswith("extras:")}
        self.extras.load_state_dict(extras)
        own = dict(self.model.named_parameters())
        wanted = {name for name, p in own.items() if p.requires_grad}
        if missing := wanted - state.keys():
            raise KeyError(f"it lacks {len(missing)} parameters that train, {min(missing)} first")
        with torch.no_grad():
            for name in state.keys() & own.keys():
                own[name].copy_(state[name])

    def note(self) -> str:
        """What of the state is no tensor, as JSON."""
        return "{}"

    def added(self) -> dict[str, int]:
        """How many numbers the model has now that it did not have, by what they are."""
        return {}

    def record(self, task: int) -> dict[str, Any]:
        """What there is to tell of a task when it has ended, for the report."""
        return {}

    # Checks.

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
    """Methods whose loss is the task's plus `weight` times a second one, `second`; the log shows both, without the weight."""

    weight: float

    def task_loss(self, batch: Any) -> Tensor:
        """The task's loss, on its own."""
        return super().terms(batch)["task"].value

    def summed(self, task: Tensor, **second: Tensor) -> dict[str, Term]:
        """The terms of the sum."""
        return {"task": Term(task, shown=True), **{name: Term(value, self.weight, shown=True) for name, value in second.items()}}


def filled(parameters: Parameters) -> Gradients:
    """The gradients that these parameters hold; one that no loss reached is zero from here on."""
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}
