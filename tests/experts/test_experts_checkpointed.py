"""Experts inside blocks whose activations are computed again: in the backward pass, where nothing says any more which task it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vla_tune.experts.pool import ExpertPool
from vla_tune.vlm.checkpointing import checkpointed

WIDTH = 6


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self, *, again):
        super().__init__()
        self.blocks, self.again = nn.ModuleList([Block(), Block()]), again

    def forward(self, x):
        for block in self.blocks:
            x = checkpointed(block, block, x) if self.again else block(x)
        return x


def pool_of(*, again):
    torch.manual_seed(0)
    pool = ExpertPool(Model(again=again), [f"blocks.{n}.{part}" for n in (0, 1) for part in ("up", "down")], rank=2, scale=1.0)
    for task in (0, 1):
        pool.grow(task, 2, pool.layers)
        pool.thaw(task)
    for layer in pool.layers.values():
        layer.requires_grad_()
        for up in layer.up.values():
            nn.init.normal_(up)
    return pool


TASKS = {"one": 1, "none": None, "mixed": torch.tensor([0, 1, -1, 0])}


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_tasks_of_the_forward_pass(tasks, dtype):
    found = []
    for again in (False, True):
        pool, x = pool_of(again=again), torch.randn(4, 3, WIDTH, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32), pool.watched() as seen:
            with pool.routed(TASKS[tasks]):
                first = pool.model(x).float().square().sum()
            with pool.routed(0):
                second = pool.model(x).float().square().sum()
            counts = {name: len(calls) for name, calls in seen.items()}
            with pool.routed(1):  # of another forward pass: no concern of the backward pass's
                first.backward(retain_graph=True)
                (first + second).backward()
        assert counts == {name: len(calls) for name, calls in seen.items()}
        found.append({name: p.grad for name, p in pool.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any(".up.1-0" in name for name in found[0]) == (tasks != "none")
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())
