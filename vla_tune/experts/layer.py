"""A linear layer with low-rank experts beside it: y = W x + s * sum over e of p_e(x) B_e A_e x; a settled mixture has p_e for p_e(x).

One product with the stacked A and router, a softmax, one product with the stacked B: two matrix products a layer, as plain LoRA.
peft's layers hold several adapters but no gate between their two factors, so these are our own; names and initial values are LoRA's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vla_tune.vlm.checkpointing import recomputing

BASE = 0
"""The slot of a router that stands for the layer as it is: what goes there is changed by no expert."""


class Routing:
    """Which task each sample of the next forward pass belongs to; one object for all layers of a model.

    tasks: one task for all samples, a number a sample `[batch]` (negative: none), or None: no expert takes part.
    pictures: how many rows of its own each sample has where pictures are rows `[batch]`; None: all as many.
    watch: called by every layer with itself and its probabilities `[..., 1 + experts]`, `...` being its inputs'.
    """

    def __init__(self) -> None:
        self.tasks: int | Tensor | None = None
        self.pictures: Tensor | None = None
        self.watch: Callable[[ExpertLinear, Tensor], None] | None = None

    @contextmanager
    def routed(self, tasks: int | Tensor | None, pictures: Tensor | None = None) -> Iterator[None]:
        """Forward passes in here are those of these tasks."""
        before = self.tasks, self.pictures
        self.tasks, self.pictures = tasks, pictures
        try:
            yield
        finally:
            self.tasks, self.pictures = before

    def as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """A function that makes a context with the tasks of now: for a forward pass that the backward pass repeats outside `routed`."""
        return partial(self.routed, self.tasks, self.pictures)

    def rows(self, count: int) -> dict[int, Tensor] | int | None:
        """The task of all rows, or which of `count` rows belong to each task. Several rows a sample (pictures) lie together."""
        if not isinstance(self.tasks, Tensor):
            return self.tasks
        found: list[int] = self.tasks.unique().tolist()
        if len(found) == 1:
            return found[0]
        samples = len(self.tasks)
        each = torch.full((samples,), count // samples) if count == samples or self.pictures is None else self.pictures
        if int(each.sum()) != count:
            raise ValueError(f"{count} rows cannot be dealt to {samples} samples")
        tasks = self.tasks.repeat_interleave(each)
        return {task: (tasks == task).nonzero().flatten() for task in found}


class Mixture(nn.Module):
    """The experts that one task uses in one layer, and how much each of them counts.

    experts: their names. like: the layer's weight `[out, d]`, for width and type.
    weight, bias: the router's, `[1 + experts, d]` and `[1 + experts]`, the first row the base's; with `routed=False` there is none, and
        every expert counts in full.
    factors: in a router's place, once it is `settle`d, what each expert counts for every token, `[experts]`.
    """

    def __init__(self, experts: list[str], like: Tensor, *, routed: bool = True) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(like.new_zeros(1 + len(experts), like.shape[1])) if routed else None
        self.bias = nn.Parameter(like.new_zeros(1 + len(experts))) if routed else None
        self.factors: nn.Parameter | None = None

    def settle(self, factors: Tensor) -> None:
        """Give up the router: from here an expert counts the same for every token, `[experts]`, to be trained."""
        self.weight = self.bias = None
        self.factors = nn.Parameter(factors)

    def keep(self, experts: list[str]) -> None:
        """Forget the other experts; the router's rows go with them."""
        rows = [BASE, *(1 + self.experts.index(one) for one in experts)]
        if self.weight is not None and self.bias is not None:
            self.weight, self.bias = (nn.Parameter(old.detach()[rows].clone(), old.requires_grad) for old in (self.weight, self.bias))
        self.experts = experts


class ExpertLinear(nn.Module):
    """A frozen linear layer `[out, d]` with its experts, and a `Mixture` a task.

    rank: of every expert. scale: of their sum (LoRA's alpha / rank). top_k: how many slots a token uses at most; 0: all.
    """

    def __init__(self, base: nn.Linear, routing: Routing, *, rank: int, scale: float, top_k: int = 0) -> None:
        super().__init__()
        self.base, self.routing = base.requires_grad_(requires_grad=False), routing
        self.rank, self.scale, self.top_k = rank, scale, top_k
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.mixtures = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """The frozen layer's; lerobot reads its type."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def add_expert(self, name: str) -> None:
        """A new expert that changes nothing yet: A random, B zero."""
        down = torch.empty(self.rank, self.in_features, device=self.weight.device, dtype=self.weight.dtype)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        self.down[name] = nn.Parameter(down)
        self.up[name] = nn.Parameter(self.weight.new_zeros(self.out_features, self.rank))

    def add_mixture(self, task: int, experts: list[str], *, routed: bool = True) -> None:
        """What a task will use, in equal parts to begin with."""
        self.mixtures[str(task)] = Mixture(experts, self.weight, routed=routed)

    def mixture(self, task: int) -> Mixture | None:
        """What a task uses here; None where it uses the layer as it is."""
        return self.mixtures[str(task)] if str(task) in self.mixtures else None  # type: ignore[return-value]  # noqa: SIM401 - a ModuleDict has no get

    def remove_expert(self, name: str) -> None:
        """Forget an expert that no mixture uses any more."""
        del self.down[name], self.up[name]

    def as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """What `vlm.checkpointing` asks of a module whose result depends on more than its inputs."""
        return self.routing.as_now()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        rows = self.routing.rows(len(x))
        if rows is None:
            return y
        if isinstance(rows, int):
            return self.updated(y, x, rows)
        for task, samples in rows.items():
            if self.mixture(task) is None:
                continue
            own = samples.to(x.device)
            y = y.index_copy(0, own, self.updated(y[own], x[own], task))
        return y

    def updated(self, y: Tensor, x: Tensor, task: int) -> Tensor:
        """The layer's output `[..., out]` and what the experts of a task add to it at inputs `[..., d]`."""
        mixture = self.mixture(task)
        if mixture is None or not mixture.experts:
            return y
        downs = [self.down[name] for name in mixture.experts]
        ups = self.scale * torch.cat([self.up[name] for name in mixture.experts], dim=1)
        if mixture.factors is not None:
            ups = ups * mixture.factors.repeat_interleave(self.rank)
        tokens = x.flatten(0, -2)
        if mixture.weight is None or mixture.bias is None:
            inner = F.linear(tokens, torch.cat(downs))
        else:  # [slots, tokens]: there are few slots, and a softmax and products along many tokens are faster
            both = torch.cat([*downs, mixture.weight]) @ tokens.T
            each, logits = both.split([len(downs) * self.rank, 1 + len(downs)])
            probabilities = gates(logits + mixture.bias[:, None], self.top_k)
            if self.routing.watch is not None and not recomputing():
                self.routing.watch(self, probabilities.T.unflatten(0, x.shape[:-1]))
            inner = (each.unflatten(0, (len(downs), self.rank)) * probabilities[1:, None]).flatten(0, 1).T
        return torch.addmm(y.flatten(0, -2), inner, ups.T).view_as(y)

    def merged(self, task: int, mean: Tensor | None) -> Tensor:
        """One weight for a task `[out, d]`, routed experts in their `mean` shares `[experts]` (exact where these are constant)."""
        mixture = self.mixture(task)
        weight = self.weight.detach().clone()
        if mixture is not None:
            if mean is None and mixture.weight is not None:
                raise ValueError("routed experts are merged by their mean shares, and none are given")
            full = torch.ones(len(mixture.experts)) if mixture.factors is None else mixture.factors
            shares = full if mean is None else mean
            for name, share in zip(mixture.experts, shares.tolist(), strict=True):
                weight += self.scale * share * (self.up[name] @ self.down[name]).detach()
        return weight


def gates(logits: Tensor, top_k: int) -> Tensor:
    """Routing probabilities `[slots, tokens]`: the softmax, over a token's `top_k` largest logits alone where that is not 0."""
    if not 0 < top_k < len(logits):
        return logits.softmax(dim=0)
    values, slots = logits.sort(dim=0, descending=True, stable=True)  # of equal ones the first: a new router's are all equal
    return torch.zeros_like(logits).scatter(0, slots[:top_k], values[:top_k].softmax(dim=0))
