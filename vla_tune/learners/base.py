"""What a method and the engine may know of a model and its tasks: one learner for each kind of model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_tune.errors import UserError, nearest
from vla_tune.learners.optimizers import as_asked
from vla_tune.vlm.parts import mlp_of

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from vla_tune.config import Config
    from vla_tune.learners.deployed import Deployed
    from vla_tune.policies.base import PolicyAdapter

Batch = Any
"""One batch as the learner's own `loss` takes it."""


class Learner:
    """A model, the tasks that it learns one after another, and the forward pass and the batches of each.

    adapter: the policy's, where the model is one.
    tasks: their names; plain training has one. base: the model that it starts from, a Hub id or a folder.
    counted: which tokens of the pass that `loss` makes are no padding, `[batch, tokens]`; None where all are.
    """

    model: nn.Module
    adapter: PolicyAdapter | None = None
    config: Config
    base: str
    tasks: list[str]
    counted: Tensor | None = None
    dtype = torch.float32
    """What the forward pass computes in; weights are float32."""

    def fresh(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that nothing was trained on before."""
        return []

    def thaw(self) -> None:
        """Everything trains that full fine-tuning trains."""
        self.model.requires_grad_()

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss on a batch."""
        raise NotImplementedError

    def computing(self) -> AbstractContextManager[Any]:
        """In here stock passes through the model, such as answers to questions, compute in `dtype`."""
        return nullcontext()

    def count(self, batch: Batch) -> Tensor | int:
        """Over how many elements the loss on this batch is a mean."""
        raise NotImplementedError

    def size(self, batch: Batch) -> int:
        """How many samples a batch has."""
        return len(next(iter(batch.values())))

    def rows(self, batch: Batch, rows: slice) -> Batch:
        """Some samples of a batch, as a batch."""
        return {key: value[rows] for key, value in batch.items()}

    def open_data(self) -> None:
        """Read what is held in memory, before a run has a folder.

        Raises:
            UserError: something of it cannot be read.

        """

    def batches(self, task: int, step: int) -> Iterator[Batch]:
        """Training batches of a task without end, as after `step` of them."""
        raise NotImplementedError

    def optimizer(self, groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, LRScheduler, float]:
        """An optimizer with its schedule over the steps of a task, and the norm that gradients are clipped to: lerobot's, here AdamW."""
        from lerobot.optim.optimizers import AdamWConfig
        from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

        train = self.config.train
        schedule = CosineDecayWithWarmupSchedulerConfig(train.warmup_steps, train.steps, train.lr, 0.0)
        return as_asked(train, AdamWConfig(weight_decay=0.0, grad_clip_norm=1.0), schedule, groups)

    def scales(self) -> Any:
        """What of the training data every later use of the model needs, as JSON: what its inputs and outputs are scaled by."""
        return None

    def rescale(self, scales: Any) -> None:
        """Use `scales` of an earlier time, whatever the data are now."""

    def save(self, folder: Path, final: Path) -> None:
        """The model as its library saves it, into `folder`, which will be `final`; it must be a stock one (`Method.as_stock`)."""
        raise NotImplementedError


class StreamLearner(Learner, ABC):
    """A model that learns a stream: where experts may go in it, what its tasks look like, and how it is scored on them.

    known_parts: the parts of the model that experts may go to, by name.
    writes: whether the model answers token by token, after prompts that are padded on the left.
    vlm_prefix: what the names of the VLM's layers start with, where the model is or has one whose anchor can be taken.
    """

    writes: ClassVar[bool] = False
    vlm_prefix: str | None = None
    known_parts: ClassVar[tuple[str, ...]]

    def __init__(self, config: Config, base: str | None = None) -> None:
        from vla_tune.policies.devices import check_device, on_device
        from vla_tune.vlm.loading import vlm_source

        config = on_device(config)
        check_device(config.device)
        self.config, self.tasks = config, [task.name for task in config.stream.tasks]
        if not base and not config.policy.base_vlm:
            raise UserError("policy.base_vlm must be set: it is the model that the stream starts from")
        self.base = base or vlm_source(str(config.policy.base_vlm))
        self._linears = config.stream.linears
        self._parts = config.stream.parts or list(self.known_parts)
        for part in self._parts:
            if part not in self.known_parts:
                raise UserError(f"stream.parts: there is no '{part}' here; there are: {', '.join(self.known_parts)}")

    # Places.

    @abstractmethod
    def stacks(self) -> dict[str, list[tuple[str, nn.Module]]]:
        """The transformer blocks, or linear layers on their own, by part: full name and module."""

    def layers(self) -> list[str]:
        """The full names of the linear layers that experts go to.

        Raises:
            UserError: none of them is called as one of `stream.linears`.

        """
        named = [
            f"{name}.{inner}".rstrip(".")
            for part in self._parts
            for name, block in self.stacks()[part]
            for inner, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]
        known = {name.rpartition(".")[2] for name in named}
        parts = ", ".join(self._parts)
        for name in self._linears:
            if name not in known:
                raise UserError(f"stream.linears: no linear layer of {parts} is called '{name}'; {nearest(name, sorted(known))}")
        return [name for name in named if not self._linears or name.rpartition(".")[2] in self._linears]

    def blocks(self) -> list[tuple[nn.Module, nn.Module, int]]:
        """Of every block the norm before its MLP, the MLP, and the width of the residual stream."""
        blocks = [block for part in self._parts for _, block in self.stacks()[part]]
        return [found for block in blocks if (found := mlp_of(block))]

    # Batches beside the training ones.

    @abstractmethod
    def probe(self, task: int) -> Batch:
        """A fixed batch of a task's training samples, for looking at."""

    def probe_loss(self, task: int) -> Tensor:
        """The loss on the probe; whatever it draws (a flow's noise and times) is the same each time, and training's draws stay theirs."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.loss(self.probe(task))

    @abstractmethod
    def remembered(self, task: int, samples: int, count: int, number: int) -> Batch:
        """`count` of the first `samples` training samples of a task; draw `number` is the same whenever it is made."""

    # Telling tasks apart.

    @abstractmethod
    def task_features(self, task: int) -> Tensor:
        """What tells a task's training samples from others', as the model that routes now sees them, `[n, d]` (`side_by_side`)."""

    @abstractmethod
    def reference_features(self) -> Tensor | None:
        """The same of samples that belong to no task; None where there are none."""

    # Scoring.

    @abstractmethod
    def score(self, task: int, deployed: Deployed) -> tuple[Tensor, Tensor | None]:
        """The scores of a task's test samples in 0..1 `[n]`, and the task that each was taken to be of."""

    def score_reference(self, deployed: Deployed) -> tuple[Tensor, Tensor | None] | None:
        """The same of test samples that belong to no task; None where there are none."""
        return None

    def images(self, task: int) -> list[str] | None:
        """The picture that each test sample of a task (`NONE`: of no task) is about; None where no two are about the same."""
        return None

    def film(self, deployed: Deployed, folder: Path) -> None:
        """Videos of the model in its world, where it has one."""


def draws(count: int, batch_size: int, seed: int, task: int, step: int) -> Iterator[Tensor]:
    """Row numbers of training batches: batch k is the same whenever it is asked for, epochs are permutations."""
    per_epoch = max(count // batch_size, 1)
    while True:
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed((seed * 10_007 + task) * 100_003 + epoch)
        order = torch.randperm(count, generator=generator)
        for at in range(place, per_epoch):
            yield order[at * batch_size : (at + 1) * batch_size]
            step += 1


def redraws(samples: int, count: int, seed: int, number: int) -> Tensor:
    """`count` row numbers below `samples`, with replacement."""
    return torch.randint(samples, (count,), generator=torch.Generator().manual_seed(seed * 1_000_003 + number))
