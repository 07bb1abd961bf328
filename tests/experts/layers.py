"""One linear layer with four random experts, and its formula worked out token by token in numpy."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from vla_tune.experts.layer import ExpertLinear, Routing

SHARED, OTHER, WHOLE, ABSENT = 0, 1, 2, 7
"""Two tasks that share an expert, one without a router, and one that has no experts."""

seeds = st.integers(0, 2**31)
tasks_of_samples = st.lists(st.sampled_from([SHARED, OTHER, WHOLE, ABSENT, -1]), min_size=1, max_size=6)


def made(seed, *, d=4, out=3, rank=2, scale=0.7, top_k=0, bias=True):
    """A layer with four random experts, and mixtures that overlap."""
    torch.manual_seed(seed)
    layer = ExpertLinear(nn.Linear(d, out, bias=bias).double(), Routing(), rank=rank, scale=scale, top_k=top_k)
    for name in ("0-0", "0-1", "1-0", "2-0"):
        layer.add_expert(name)
        nn.init.normal_(layer.up[name])
    layer.add_mixture(SHARED, ["0-0", "0-1"])
    layer.add_mixture(OTHER, ["0-1", "0-0", "1-0"])
    layer.add_mixture(WHOLE, ["1-0", "2-0"], routed=False)
    for task in (SHARED, OTHER):
        for parameter in layer.mixture(task).parameters():
            nn.init.normal_(parameter)
    return layer


def inputs(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def run(layer, x, tasks):
    layer.routing.tasks = torch.tensor(tasks) if isinstance(tasks, list) else tasks
    try:
        return layer(x).detach()
    finally:
        layer.routing.tasks = None


def explicit_probabilities(layer, token, task):
    """One token's, slot by slot."""
    mixture = layer.mixture(task)
    weight, bias = mixture.weight.detach().numpy(), mixture.bias.detach().numpy()
    logits = [float(weight[slot] @ token) + float(bias[slot]) for slot in range(1 + len(mixture.experts))]
    slots = range(len(logits))
    if layer.top_k:
        slots = sorted(slots, key=lambda slot: -logits[slot])[: layer.top_k]
    total = sum(math.exp(logits[slot]) for slot in slots)
    return [math.exp(logits[slot]) / total if slot in slots else 0.0 for slot in range(len(logits))]


def explicit(layer, x, task):
    """The formula, token by token and expert by expert, in numpy."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    rows = []
    for token in x.numpy().reshape(-1, x.shape[-1]):
        y = weight @ token + bias
        mixture = layer.mixture(task)
        if mixture is not None:
            shares = explicit_probabilities(layer, token, task)[1:] if mixture.weight is not None else [1.0] * len(mixture.experts)
            for name, share in zip(mixture.experts, shares, strict=True):
                a, b = layer.down[name].detach().numpy(), layer.up[name].detach().numpy()
                y = y + layer.scale * share * (b @ (a @ token))
        rows.append(y)
    return torch.from_numpy(np.stack(rows).reshape(*x.shape[:-1], len(bias)))
