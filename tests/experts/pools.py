"""Expert layers in a model of two small blocks, and how it is trained and asked."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vla_tune.experts.pool import ExpertPool, mean_shares

PLACES = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
RANK, WIDTH, HIDDEN = 2, 6, 5


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.blocks(x))


def pool_of(stock, **options):
    return ExpertPool(copy.deepcopy(stock), PLACES, **{"rank": RANK, "scale": 2.0, **options})


def inputs(seed=1, count=6):
    return torch.randn(count, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


def outputs(pool, tasks, x=None):
    with torch.no_grad(), pool.routed(torch.tensor(tasks) if isinstance(tasks, list) else tasks):
        return pool.model(inputs() if x is None else x)


def train(pool, task, steps=3):
    """Some steps of SGD on what trains."""
    torch.manual_seed(task)
    optimizer = torch.optim.SGD([p for p in pool.model.parameters() if p.requires_grad], lr=0.5)
    for step in range(steps):
        optimizer.zero_grad()
        with pool.routed(task):
            (pool.model(inputs(100 * task + step)) - 1).square().mean().backward()
        optimizer.step()


def learn(pool, task, candidates=2, **options):
    pool.freeze()
    pool.grow(task, candidates, PLACES, **options)
    train(pool, task)


def trains(pool):
    """The names of all parameters of the model that train."""
    return {name for name, p in pool.model.named_parameters() if p.requires_grad}


def own(task, experts, places=PLACES):
    """The names of the experts of a task and of its routers."""
    parts = [f"{part}.{task}-{number}" for part in ("down", "up") for number in range(experts)]
    return {f"{place}.{part}" for place in places for part in [*parts, f"mixtures.{task}.weight", f"mixtures.{task}.bias"]}


def everywhere(*experts):
    """What `keep` takes, the same for all layers."""
    return {place: list(experts) for place in PLACES}


def constant_gates(pool, task):
    """Make a task's routers blind to what they route, and look at what they then say, by layer and name."""
    with torch.no_grad():
        for layer in pool.layers.values():
            layer.mixture(task).weight.zero_()
    with torch.no_grad(), pool.routed(task), pool.watched() as seen:
        pool.model(inputs())
    slots = {name: ["base", *pool.layers[name].mixture(task).experts] for name in seen}
    return {name: dict(zip(slots[name], mean_shares(calls).tolist(), strict=True)) for name, calls in seen.items()}
